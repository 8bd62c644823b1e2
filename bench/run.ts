import { loadavg } from 'node:os'
import { preparePack } from '../services/cli/model.ts'
import { ProgressBar } from '../services/cli/progress.ts'
import type { BandwidthGauge } from './bandwidth.ts'
import { ensureCheckpoint, modelDirectory } from './checkpoint.ts'
import { startCluster } from './cluster.ts'
import { othersCoresMax, watch } from './disturbance.ts'
import { ensureGguf } from './gguf.ts'
import { decodeStepBytes, ourStorage, peerStorage } from './model-bytes.ts'
import { startMoesh } from './moesh-process.ts'
import type { BenchOptions } from './options.ts'
import { MoeshTarget } from './ours.ts'
import { PeerTarget } from './peer.ts'
import type { Report, ReportRow } from './report.ts'
import {
  type AlonePlan,
  type BenchFormat,
  type ClusterPlan,
  contextTokens,
  decodeRate,
  peerFormats,
  peerRpcFactor,
  prefillRate,
  type RowPlan,
} from './rows.ts'
import { type Measured, measurePairs, summarise, summarisePairs } from './statistics.ts'
import type { Target } from './target.ts'

/** One run: prepares what its rows need, and measures them. */
export class Bench {
  readonly #options: BenchOptions
  readonly #report: Report
  readonly #gauge: BandwidthGauge
  readonly #checkpoint: string

  constructor(options: BenchOptions, report: Report, gauge: BandwidthGauge) {
    const { cacheDir, shape, seed } = options
    this.#options = options
    this.#report = report
    this.#gauge = gauge
    this.#checkpoint = withProgress('writing the checkpoint', (onProgress) =>
      ensureCheckpoint(cacheDir, shape, seed, onProgress),
    )
  }

  /** Rows of one format that are measured on one process of each side. */
  async compareAlone(format: BenchFormat, plans: readonly AlonePlan[]): Promise<void> {
    const { shape, threads, cacheDir } = this.#options
    const pack = await this.#pack(format)
    const gguf = this.#gguf(format)
    say(`\n${format}: starting moesh and llama.cpp`)
    const flags = ['--threads', `${threads}`, '--ranks', `${threads}`, '--cache', cacheDir]
    const server = await startMoesh(['serve', pack, ...flags, '--grpc', '127.0.0.1:0'])
    try {
      const ours = await MoeshTarget.open(server.grpc, shape.vocabulary)
      const peer = await PeerTarget.start(gguf, shape.vocabulary, threads)
      try {
        for (const plan of plans) {
          const measure = (target: Target) => () => rateOf(plan, target)
          await this.#row(plan, measure(ours), measure(peer))
        }
      } finally {
        await peer.close()
        await ours.close()
      }
    } finally {
      await server.stop()
    }
  }

  async compareCluster(plan: ClusterPlan): Promise<void> {
    const { shape, threads, cacheDir } = this.#options
    const { sequences, steps } = plan
    const behindProxies = plan.kind === 'cluster-delay'
    say(`\n${plan.name}: starting a coordinator and two expert nodes`)
    const pack = await this.#pack(plan.format)
    const cluster = await startCluster({ pack, cacheDir, expertNodes: 2, threads, behindProxies })
    try {
      const ours = await MoeshTarget.open(cluster.grpc, shape.vocabulary)
      const rate = () => decodeRate(ours, sequences, steps)
      if (plan.kind === 'cluster-delay') {
        const through = (roundTripMs: number) => () => {
          cluster.setRoundTripMs(roundTripMs)
          return rate()
        }
        await this.#row(plan, through(plan.roundTripMs), through(0))
      } else {
        const peer = await PeerTarget.start(this.#gguf(plan.format), shape.vocabulary, 1)
        try {
          await this.#row(plan, rate, async () => peerRpcFactor * (await decodeRate(peer, sequences, steps)))
        } finally {
          await peer.close()
        }
      }
      await ours.close()
    } finally {
      await cluster.stop()
    }
  }

  async #row(plan: RowPlan, ours: () => Promise<number>, peer: () => Promise<number>): Promise<void> {
    const before = loadavg()[0] ?? 0
    say(plan.name)
    // Not measured: code that runs for the first time is not compiled yet, and memory not touched.
    await ours()
    await peer()
    // Read before each measurement, since a machine's memory is faster in one minute than in the next.
    const bandwidths: number[] = []
    const measure = async (side: () => Promise<number>) => {
      if (plan.kind === 'decode') bandwidths.push(await this.#gauge.read())
      return watch(side)
    }
    const measured = await measurePairs({
      pairs: this.#options.pairs,
      othersCoresMax,
      ours: () => measure(ours),
      peer: () => measure(peer),
      onPair: (our, theirs, counts) => say(pairText(our, theirs, counts)),
    })
    const summary = summarisePairs(measured)
    const row: ReportRow = {
      row: plan.name,
      unit: 'tokens/s',
      ...summary,
      pairs: measured.ours.length,
      repeated: measured.repeated,
      othersCores: measured.othersCores,
      against: this.#against(plan),
      ...this.#derived(plan, summary.ours.median, summary.peer.median, bandwidths),
      load: [before, loadavg()[0] ?? 0],
    }
    this.#report.rows.push(row)
  }

  #against(plan: RowPlan): string {
    const format = peerFormats[plan.format]
    switch (plan.kind) {
      case 'prefill':
      case 'decode':
        return format
      case 'cluster-decode':
        return `${peerRpcFactor} × ${format} alone with one thread`
      case 'cluster-delay':
        return 'the same without delay'
    }
  }

  #derived(
    plan: RowPlan,
    ours: number,
    peer: number,
    bandwidths: readonly number[],
  ): Pick<ReportRow, 'readBandwidth' | 'bandwidthFraction' | 'timeToFirstTokenMs'> {
    if (plan.kind === 'prefill') {
      return { timeToFirstTokenMs: { ours: (1000 * plan.rows) / ours, peer: (1000 * plan.rows) / peer } }
    }
    if (plan.kind !== 'decode') return {}
    const { shape } = this.#options
    const readBandwidth = summarise(bandwidths)
    const context = contextTokens + plan.steps / 2
    const fraction = (storage: Parameters<typeof decodeStepBytes>[1], rate: number) =>
      (decodeStepBytes(shape, storage, plan.sequences, context) * rate) / plan.sequences / readBandwidth.median
    return {
      readBandwidth,
      bandwidthFraction: {
        ours: fraction(ourStorage(plan.format), ours),
        peer: fraction(peerStorage(peerFormats[plan.format]), peer),
      },
    }
  }

  #pack(format: BenchFormat): Promise<string> {
    return preparePack({ model: this.#checkpoint, cache: this.#options.cacheDir, format })
  }

  #gguf(format: BenchFormat): string {
    const { cacheDir, shape, seed } = this.#options
    const peerFormat = peerFormats[format]
    const directory = modelDirectory(cacheDir, shape, seed)
    return withProgress(`converting to ${peerFormat}`, (onProgress) =>
      ensureGguf(directory, this.#checkpoint, shape, peerFormat, onProgress),
    )
  }
}

function rateOf(plan: AlonePlan, target: Target): Promise<number> {
  switch (plan.kind) {
    case 'prefill':
      return prefillRate(target, plan.rows)
    case 'decode':
      return decodeRate(target, plan.sequences, plan.steps)
  }
}

function pairText(ours: Measured, peer: Measured, counts: boolean): string {
  const others = ([ours, peer] as const).map(({ othersCores }) => othersCores?.toFixed(2) ?? '?').join(' and ')
  const ratio = (ours.result / peer.result).toFixed(2)
  const rates = `${ours.result.toFixed(1)} against ${peer.result.toFixed(1)} tokens/s: ${ratio}`
  return `  ${rates} (others used ${others} cores${counts ? '' : '; again'})`
}

function say(text: string): void {
  process.stderr.write(`${text}\n`)
}

/** What is there already shows no bar. */
function withProgress<T>(label: string, work: (onProgress: (bytes: number, total: number) => void) => T): T {
  const bar = new ProgressBar(label, process.stderr)
  try {
    return work((bytesDone, bytesTotal) => bar.update({ bytesDone, bytesTotal }))
  } finally {
    bar.end()
  }
}
