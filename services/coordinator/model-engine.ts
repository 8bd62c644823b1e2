import { createHash } from 'node:crypto'
import type { Dispatcher } from '../dispatch/transport.ts'
import type { ShardSource } from '../expert/host.ts'
import type { ModelSpec } from '../model/spec.ts'
import type { PackReader } from '../pack/reader.ts'
import { coordinatorNumerics } from '../runtime/canary.ts'
import { type CpuChoice, claimCpus } from '../runtime/cpus.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import { codeOf } from '../runtime/wasm.ts'
import type { CapacitySettings } from './capacity.ts'
import { engineCapacity } from './capacity.ts'
import { drawKernelBytes } from './draw-kernel.ts'
import { createEngine } from './engine.ts'
import type { KvExchange } from './kv-exchange.ts'
import type { Engine } from './request.ts'
import { RequestCounters } from './request-counters.ts'
import { kvBlocks } from './scheduler.ts'
import { StepCounters } from './step-counters.ts'
import { kernelBytes } from './team/attention-kernel.ts'
import { phases, teamSize } from './team/layout.ts'
import { Team } from './team/team.ts'

export type ModelEngineOptions = CapacitySettings & {
  pack: PackReader
  /** What brings rows to the experts; or all experts, for `ranks` of the team's own threads to compute. */
  experts: Dispatcher | { shards: readonly ShardSource[]; ranks: number }
  threads: number
  /** Most tokens that a step guesses of a sequence; 0: none. */
  speculate: number
  /** Somebody takes the changes of `kv`; nobody, if not given. */
  sharesKv?: boolean
  /** For the team's threads, as `claimCpus` takes it. */
  cpus: CpuChoice | undefined
  stageDir: string
}

/** The coordinator's own share of a model, loaded, with the step loop over it. */
export type ModelEngine = {
  engine: Engine
  kv: KvExchange
  /** Class of coordinators that compute equal bits. */
  numerics: string
  steps: StepCounters
  counters: RequestCounters
  /** Null where experts are computed elsewhere. */
  teamExperts: TeamExperts | null
  close(): Promise<void>
}

/** What the team's threads have computed of experts since the start. */
export type TeamExperts = {
  ranks: number
  /** [experts] rows of each expert of a layer. Owned by the team, which goes on counting. */
  expertRows(layer: number): Float64Array
  /** ms, all threads together. */
  computedMs(): number
  runtimeMs(): number
}

/** Alternatives that log-probabilities may name for a token; clients of other servers ask for 20 at most. */
const topMax = 128
/** Rows whose logits are held at once. */
const headRowsMax = 32

export async function startModelEngine(options: ModelEngineOptions): Promise<ModelEngine> {
  const { pack, experts, threads, stageDir } = options
  const { shards, ranks } = 'dispatch' in experts ? { shards: [], ranks: 0 } : experts
  // Not loaded yet where the team computes them.
  const expertBytes = shards.reduce((sum, { bytes }) => sum + bytes, 0)
  const { spec, weightFormat: format } = pack.manifest
  const limits = engineCapacity(spec, options, { freeBytes: process.availableMemory() - expertBytes, threads })
  const avoidSaturation = saturatesInt8(stageDir)
  const numerics = coordinatorNumerics(
    { stageDir, provider: 'cpu', avoidSaturation, format },
    Buffer.concat([codeOf(kernelBytes), codeOf(drawKernelBytes)]),
  )
  const size = teamSize({ threads, ranks })
  const team = await Team.start({
    spec,
    format,
    pack: { dir: pack.dir, tensors: pack.manifest.tensors },
    stageDir,
    avoidSaturation,
    cpus: claimCpus(size, options.cpus),
    shards,
    limits: {
      threads,
      ranks,
      rowsMax: limits.maxBatchTokens,
      itemsMax: limits.maxSequences,
      sequenceBlocks: kvBlocks(limits.contextLength),
      headRowsMax,
      topMax,
    },
  })
  const nowMs = () => performance.now()
  const steps = new StepCounters(team.buffers, size, nowMs)
  const counters = new RequestCounters()
  const engine = createEngine({
    spec,
    team,
    dispatcher: 'dispatch' in experts ? experts : null,
    limits,
    topMax,
    headRowsMax,
    guessesMax: options.speculate,
    sharesKv: options.sharesKv ?? false,
    steps,
    counters,
    nowMs,
  })
  return {
    engine,
    kv: engine.kv,
    numerics,
    steps,
    counters,
    teamExperts: ranks > 0 ? teamExperts(team, spec, ranks) : null,
    close: async () => {
      await engine.close()
      await team.close()
    },
  }
}

function teamExperts({ buffers }: Team, spec: ModelSpec, ranks: number): TeamExperts {
  const { expertRows, profile, runtime } = buffers
  const widest = expertRows.length / spec.layers.length
  const phase = phases.indexOf('expert')
  const sum = (times: Float64Array) => {
    let ms = 0
    for (let place = phase; place < times.length; place += phases.length) ms += times[place] ?? 0
    return ms
  }
  return {
    ranks,
    expertRows: (layer) => expertRows.subarray(layer * widest, (layer + 1) * widest),
    computedMs: () => sum(profile),
    runtimeMs: () => sum(runtime),
  }
}

/** Names everything that output bits depend on. */
export function fingerprint(packDigest: string, coordinatorClass: string, expertClass: string): string {
  return createHash('sha256').update(`${packDigest}\n${coordinatorClass}\n${expertClass}`).digest('hex').slice(0, 32)
}
