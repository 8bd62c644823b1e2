import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { ApiClient } from '../services/cli/client.ts'
import { runLoad } from '../services/cli/load.ts'
import { preparePack } from '../services/cli/model.ts'
import { readProfile, tokenProfile } from '../services/cli/profile.ts'
import { ensureCheckpoint } from './checkpoint.ts'
import { startCluster } from './cluster.ts'
import { watch } from './disturbance.ts'
import { wholeNumber } from './options.ts'
import { benchShapes } from './shape.ts'

/**
 * What a layer's way to expert nodes and back costs beyond their computing, one sequence, int4: each run's p50, p90 and p99 in
 * ms, and the median over all runs. Clusters are started anew, since where threads come to lie differs from start to start:
 *
 *   node bin/run.mjs bench/hop.ts [--clusters 5] [--runs 5] [--nodes 2] [--threads 2] [--tokens 512] [--cache DIR]
 */

const shape = benchShapes['olmoe-4l']
const { values } = parseArgs({
  options: {
    clusters: { type: 'string', default: '5' },
    runs: { type: 'string', default: '5' },
    nodes: { type: 'string', default: '2' },
    threads: { type: 'string', default: '2' },
    tokens: { type: 'string', default: '512' },
    cache: { type: 'string', default: join(tmpdir(), 'moesh-bench') },
  },
})

const clusters = wholeNumber('clusters', values.clusters)
const runs = wholeNumber('runs', values.runs)
const expertNodes = wholeNumber('nodes', values.nodes)
const threads = wholeNumber('threads', values.threads)
const maxTokens = wholeNumber('tokens', values.tokens)
const cacheDir = values.cache
const checkpoint = ensureCheckpoint(cacheDir, shape, 1, () => {})
const pack = await preparePack({ model: checkpoint, cache: cacheDir, format: 'int4' })
const load = {
  concurrency: 1,
  requests: 1,
  promptTokens: 16,
  maxTokens,
  vocabulary: shape.vocabulary,
}

async function measureCluster(): Promise<number[]> {
  const cluster = await startCluster({
    pack,
    cacheDir,
    expertNodes,
    threads,
    behindProxies: false,
  })
  try {
    const client = await ApiClient.open({
      server: cluster.grpc,
      tlsCert: undefined,
      tlsKey: undefined,
      tlsCa: undefined,
    })
    const medians: number[] = []
    // The first run, while code is compiled, is not measured.
    for (let run = 0; run <= runs; run++) {
      const before = await readProfile(client)
      const { result, othersCores } = await watch(() => runLoad(client, load, new AbortController().signal))
      const hop = tokenProfile(before, await readProfile(client)).one_row_overhead_ms
      if (hop === null) throw new Error('no layer had one row')
      const three = [hop.p50, hop.p90, hop.p99].map((ms) => ms.toFixed(3)).join(' / ')
      const rate = (result.outputTokens / result.seconds).toFixed(1)
      console.log(
        `${run === 0 ? 'first ' : ''}${three} ms, ${rate} tokens/s (others used ${othersCores?.toFixed(2) ?? '?'} cores)`,
      )
      if (run > 0) medians.push(hop.p50)
    }
    client.close()
    return medians
  } finally {
    await cluster.stop()
  }
}

const medians: number[] = []
for (let cluster = 0; cluster < clusters; cluster++) {
  console.log(`cluster ${cluster + 1}`)
  medians.push(...(await measureCluster()))
}
medians.sort((a, b) => a - b)
const at = (share: number) => medians[Math.floor(share * (medians.length - 1))]?.toFixed(3)
console.log(`p50 of ${medians.length} runs: median ${at(0.5)} ms (${at(0)}–${at(1)})`)
