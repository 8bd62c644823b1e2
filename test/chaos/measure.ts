import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { packCheckpoint } from '../../services/pack/pack.ts'
import { type ClusterProcess, TestCluster, until } from '../support/cluster.ts'
import { longestWaitMs } from '../support/streams.ts'
import { Load, undisturbed } from './load.ts'

/**
 * `node bin/run.mjs test/chaos/measure.ts`: how long streams wait when a node is killed, stopped, emptied and filled
 * again; one coordinator, three expert nodes, two copies. Repeats, and prints each repetition and the median.
 */

const { values } = parseArgs({
  options: { repeat: { type: 'string', default: '5' }, streams: { type: 'string', default: '4' } },
})

/** Streams begin and caches fill; what comes before is not measured. */
const warmMs = 4000
const calmMs = 3000

type Measured = Record<string, number>

// Its processes end with its own exit.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))

const directory = mkdtempSync(join(tmpdir(), 'moesh-measure-'))
const pack = join(directory, 'pack')
await packCheckpoint(join(import.meta.dirname, '..', '..', 'models', 'tales-moe'), pack, { format: 'int8' })
const cluster = await TestCluster.start({
  pack,
  minReplicas: 2,
  coordinator: { environment: { MOESH_LOG_LEVEL: 'debug' } },
})
try {
  const load = new Load(cluster, await undisturbed(cluster), Number(values.streams))
  await sleep(warmMs)
  const all: Measured[] = []
  for (let time = 0; time < Number(values.repeat); time++) {
    const measured = { ...(await killed(load)), ...(await stopped(load)), ...(await moved(load)) }
    all.push(measured)
    process.stdout.write(`${JSON.stringify(measured)}\n`)
  }
  await load.stop()
  for (const name of Object.keys(all[0] ?? {})) {
    const sorted = all.map((one) => one[name] ?? 0).sort((a, b) => a - b)
    const [least = 0, most = 0] = [sorted[0], sorted.at(-1)]
    process.stdout.write(`${name.padEnd(44)} ${median(sorted)} (${least} to ${most})\n`)
  }
  process.stdout.write(`${load.ended} streams, ${load.failures.length} failed\n`)
} finally {
  await cluster.close()
  rmSync(directory, { recursive: true, force: true })
}
process.exit(0)

async function killed(load: Load): Promise<Measured> {
  const victim = expert(1)
  const calmMaxMs = await calm(load)
  const killedMs = performance.now()
  await victim.kill()
  const restoredMs = await until('every expert has two living copies', 20_000, async () => {
    const status = await cluster.status()
    const living = status.nodes.filter(
      ({ id, role, state }) => role === 'EXPERT' && id !== victim.id && state !== 'LOST',
    )
    return status.under_replicated === 0 && living.reduce((sum, { shards }) => sum + shards, 0) >= 2 * 64
  })
  const maxMs = longest(load, killedMs)
  victim.start()
  await cluster.settled()
  await sleep(1000)
  return {
    'kill: longest wait before, ms': calmMaxMs,
    'kill: longest wait, ms': maxMs,
    'kill: copies restored, ms': round(restoredMs),
  }
}

async function stopped(load: Load): Promise<Measured> {
  const victim = expert(2)
  const calmMaxMs = await calm(load)
  const { nodes } = await cluster.client(coordinator()).call('moesh.v1.Cluster/GetStatus', {})
  const p99Ms = Math.max(...nodes.map((node: { dispatch_p99_seconds: number }) => node.dispatch_p99_seconds * 1000))
  const logged = coordinator().log().length
  const stoppedMs = performance.now()
  victim.signal('SIGSTOP')
  await sleep(5000)
  const maxMs = longest(load, stoppedMs)
  victim.signal('SIGCONT')
  const waits = [
    ...coordinator()
      .log()
      .slice(logged)
      .matchAll(/waits for (\d+) ms/g),
  ].map(([, ms]) => Number(ms))
  await cluster.settled()
  await sleep(1000)
  return {
    'stop: longest wait before, ms': calmMaxMs,
    'stop: longest wait, ms': maxMs,
    'stop: nodes p99 before, ms': round(p99Ms),
    'stop: first call late after, ms': waits[0] ?? 0,
  }
}

async function moved(load: Load): Promise<Measured> {
  const victim = expert(0)
  await calm(load)
  const before = gaps(load, performance.now() - calmMs)
  const client = cluster.client(coordinator())
  const fromMs = performance.now()
  await client.call('moesh.v1.Cluster/Drain', { node: victim.id })
  await sleep(500)
  await client.call('moesh.v1.Cluster/Undrain', { node: victim.id })
  await cluster.settled()
  const takenMs = performance.now() - fromMs
  const during = gaps(load, fromMs)
  await sleep(1000)
  return {
    'rebalance: p99 between tokens before, ms': quantile(before, 0.99),
    'rebalance: p99 during, ms': quantile(during, 0.99),
    'rebalance: p99 ratio': round((100 * quantile(during, 0.99)) / quantile(before, 0.99)) / 100,
    'rebalance: longest, ms': quantile(during, 1),
    'rebalance: drain and undrain, ms': round(takenMs),
  }
}

async function calm(load: Load): Promise<number> {
  load.forget()
  const fromMs = performance.now()
  await sleep(calmMs)
  return longest(load, fromMs)
}

function longest(load: Load, fromMs: number): number {
  return round(Math.max(0, ...[...load.streams].map((stream) => longestWaitMs(stream, fromMs))))
}

/** Between tokens of one stream, ascending. */
function gaps(load: Load, fromMs: number): number[] {
  const all: number[] = []
  for (const { tokens } of load.streams) {
    for (let i = 1; i < tokens.length; i++) {
      const [before, after] = [tokens[i - 1]?.atMs ?? 0, tokens[i]?.atMs ?? 0]
      if (before >= fromMs) all.push(after - before)
    }
  }
  return all.sort((a, b) => a - b)
}

function quantile(sorted: readonly number[], share: number): number {
  return round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0)
}

function median(sorted: readonly number[]): number {
  return sorted[sorted.length >> 1] ?? 0
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function expert(index: number): ClusterProcess {
  const found = cluster.experts[index]
  if (!found) throw new Error(`there is no expert ${index}`)
  return found
}

function coordinator(): ClusterProcess {
  const [found] = cluster.coordinators
  if (!found) throw new Error('there is no coordinator')
  return found
}
