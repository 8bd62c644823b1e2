import { z } from 'zod'
import type { OptionsOf } from '../config/options.ts'
import { formatBytes } from './bytes.ts'
import { ApiClient } from './client.ts'
import { table } from './table.ts'

const long = z.string().transform(Number)
const node = z.object({
  id: z.string(),
  role: z.string(),
  state: z.string(),
  address: z.string(),
  zone: z.string(),
  memory_bytes: long,
  used_bytes: long,
  ranks: z.number(),
  shards: z.number(),
  provider: z.string(),
  numerics: z.string(),
  rows_per_second: z.number(),
  dispatch_p50_seconds: z.number(),
  dispatch_p99_seconds: z.number(),
  version: z.string(),
  reason: z.string(),
})

const statusSchema = z.object({
  cluster: z.string(),
  model_digest: z.string(),
  model: z.string(),
  epoch: long,
  leader: z.string(),
  nodes: z.array(node),
  min_replicas: z.number(),
  uncovered: z.number(),
  under_replicated: z.number(),
  balancedness: z.number(),
  store: z.object({ kind: z.string(), reachable: z.boolean(), round_trip_seconds: z.number() }).nullable(),
  experts: z.array(
    z.object({ layer: z.number(), expert: z.number(), rows_per_second: z.number(), nodes: z.array(z.string()) }),
  ),
  running_requests: z.number(),
  queued_requests: z.number(),
  tokens_per_second: z.number(),
})
export type StatusDocument = z.infer<typeof statusSchema>

/** `moesh status`. */
export async function runStatus(options: OptionsOf<'status'>, signal: AbortSignal): Promise<void> {
  const client = await ApiClient.open(options)
  const request = { expert_load: options.expertLoad }
  const show = (message: unknown, isFirst: boolean) => {
    const document = statusSchema.parse(message)
    if (options.json) {
      process.stdout.write(`${JSON.stringify(document)}\n`)
      return
    }
    // A watch on a terminal stays in place; elsewhere statuses follow each other.
    if (!isFirst) process.stdout.write(process.stdout.isTTY ? '\x1b[H\x1b[2J' : '\n')
    process.stdout.write(renderStatus(document))
  }
  try {
    if (!options.watch) {
      show(await client.call('moesh.v1.Cluster/GetStatus', request), true)
      return
    }
    let isFirst = true
    for await (const message of client.stream('moesh.v1.Cluster/WatchStatus', request, signal)) {
      show(message, isFirst && !process.stdout.isTTY)
      isFirst = false
    }
  } catch (thrown) {
    if (!signal.aborted) throw thrown
  } finally {
    client.close()
  }
}

/** For people. */
export function renderStatus(status: StatusDocument): string {
  const copies =
    status.uncovered > 0
      ? `${status.uncovered} experts have no live copy`
      : status.under_replicated > 0
        ? `every expert lives; ${status.under_replicated} have fewer than ${status.min_replicas} copies`
        : `every expert has at least ${status.min_replicas} live ${status.min_replicas === 1 ? 'copy' : 'copies'}`
  const head = [
    [
      'cluster',
      `${status.cluster}, epoch ${status.epoch}, leader ${status.leader || 'none'}, store ${storeText(status)}`,
    ],
    [
      'model',
      `${status.model || 'none'}${status.model_digest === '' ? '' : `, digest ${status.model_digest.slice(0, 16)}`}`,
    ],
    ['placement', `${copies}; balance ${(status.balancedness * 100).toFixed(0)} %`],
    [
      'requests',
      `${status.running_requests} running, ${status.queued_requests} queued, ${status.tokens_per_second.toFixed(1)} tokens/s`,
    ],
  ]
  return `${table(head)}\n${nodesTable(status)}${expertsTable(status)}`
}

function storeText({ store }: StatusDocument): string {
  if (store === null) return 'unknown'
  if (store.kind === 'memory') return 'in memory'
  return `${store.kind}, ${store.reachable ? `${milliseconds(store.round_trip_seconds)} a round trip` : 'not reachable'}`
}

function nodesTable({ nodes }: StatusDocument): string {
  const header = [
    'NODE',
    'ROLE',
    'STATE',
    'ADDRESS',
    'ZONE',
    'RANKS',
    'SHARDS',
    'MEMORY',
    'ROWS/S',
    'P50',
    'P99',
    'REASON',
  ]
  const rows = nodes.map((node) => [
    node.id,
    node.role.toLowerCase(),
    node.state.toLowerCase(),
    node.address || '-',
    node.zone || '-',
    `${node.ranks} ${node.provider}`,
    node.role === 'EXPERT' ? `${node.shards}` : '-',
    node.memory_bytes === 0
      ? formatBytes(node.used_bytes)
      : `${formatBytes(node.used_bytes)} of ${formatBytes(node.memory_bytes)}`,
    node.rows_per_second.toFixed(0),
    milliseconds(node.dispatch_p50_seconds),
    milliseconds(node.dispatch_p99_seconds),
    node.reason,
  ])
  return table([header, ...rows])
}

function expertsTable({ experts }: StatusDocument): string {
  if (experts.length === 0) return ''
  const rows = experts.map(({ layer, expert, rows_per_second: rowsPerSecond, nodes }) => [
    `${layer}`,
    `${expert}`,
    rowsPerSecond.toFixed(1),
    nodes.join(' ') || 'none',
  ])
  return `\n${table([['LAYER', 'EXPERT', 'ROWS/S', 'NODES'], ...rows])}`
}

function milliseconds(seconds: number): string {
  if (seconds === 0) return '-'
  const value = seconds * 1000
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(2)} ms`
}
