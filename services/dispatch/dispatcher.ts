import type { MoeshError } from '../config/errors.ts'
import { Audit, type AuditFinding } from './audit.ts'
import type { Cancellation } from './cancellation.ts'
import type { Clock } from './clock.ts'
import { defaultHedgeOptions, type HedgeOptions, LatencyRecord } from './hedge.ts'
import { NodeHealth } from './node-health.ts'
import { OutputPool } from './output-pool.ts'
import { Probes } from './probes.ts'
import type { RouteTable } from './route.ts'
import { groupRows, RowGroups } from './row-groups.ts'
import type { RowEncoding } from './rows.ts'
import { type DispatchContext, RunningDispatch } from './running-dispatch.ts'
import { SideCalls } from './side-call.ts'
import type { Dispatcher, DispatchReport, ExpertTransport, RoutedRows } from './transport.ts'

export type DispatcherEvents = {
  /** An expert that rows wait for has no copy that answers. Once per dispatch and expert; loading it ends the wait. */
  onUncovered?: (layer: number, expert: number) => void
  /** A node became late, or answers again. */
  onNodeLate?: (nodeId: string, isLate: boolean, reason: string) => void
  /** A call failed; it is repeated elsewhere. */
  onFailure?: (nodeId: string, error: MoeshError) => void
  /** An audit found rows that differ. */
  onAudit?: (finding: AuditFinding) => void
}

export type DispatcherOptions = DispatcherEvents & {
  hidden: number
  encoding: RowEncoding
  routes: RouteTable
  /** By node id. The dispatcher looks a node up at each call, so its owner may add, replace and remove. */
  transports: Pick<ReadonlyMap<string, ExpertTransport>, 'get'>
  clock: Clock
  /** 0 ≤ x < 1, for the audit's sampling. */
  random?: () => number
  hedge?: Partial<HedgeOptions>
  /** Share of the (row, expert) pairs that is computed twice and compared; default 0.001. */
  auditShare?: number
  /** The coordinator's own copy of an expert, if it holds one: the audit's last word. */
  reference?: (layer: number, expert: number) => ExpertTransport | undefined
  /** Loads an expert here to decide an audit between two copies that differ. */
  judge?: (layer: number, expert: number) => Promise<ExpertTransport | null>
}

export type NodeDispatchStats = {
  p50Ms: number
  p99Ms: number
  isLate: boolean
  /** Why it is late; empty if it is not. */
  reason: string
  /** Answered (row, expert) pairs and calls, failed calls, and how often a call was late; since the start. */
  rows: number
  calls: number
  failures: number
  late: number
}

/** Since the start, but for `running`. `retriedRows` of finished dispatches, those that were hedged among them. */
export type DispatcherStats = {
  running: number
  dispatches: number
  retriedRows: number
  hedgedRows: number
  audited: number
  auditsDiffering: number
}

export interface RoutingDispatcher extends Dispatcher {
  routes(): RouteTable
  /** Running dispatches use it too: what waits for an expert goes on. */
  setRoutes(routes: RouteTable): void
  /** Rows that each expert of a layer got since the start, [experts]. Owned by the dispatcher, which goes on counting. */
  expertRows(layer: number): Float64Array
  nodeStats(nodeId: string): NodeDispatchStats
  stats(): DispatcherStats
  /** Ends all running dispatches as their cancellations would. */
  cancelAll(): void
  /** Ends what it does by itself; running dispatches end by their cancellations. */
  close(): void
}

/** Audits under way at once; what is drawn beyond is left out. */
const auditsMax = 4
/** Dispatches that run at once need a set of arrays each; so many sets are kept. */
const groupsKept = 8

export function createDispatcher(options: DispatcherOptions): RoutingDispatcher {
  return new RowDispatcher(options)
}

class RowDispatcher implements RoutingDispatcher {
  readonly #options: DispatcherOptions
  readonly #health: NodeHealth
  readonly #latency: LatencyRecord
  readonly #probes: Probes
  readonly #audits: SideCalls
  readonly #audit: Audit
  readonly #context: DispatchContext
  readonly #running = new Set<RunningDispatch>()
  readonly #freeGroups: RowGroups[] = []
  readonly #expertRows = new Map<number, Float64Array>()
  #routes: RouteTable
  /** [nodes of the table]: how much each is avoided. */
  #avoid: Uint8Array
  #step = 0
  #retriedRows = 0
  #hedgedRows = 0

  constructor(options: DispatcherOptions) {
    const { hidden, encoding, clock, transports } = options
    this.#options = options
    this.#routes = options.routes
    this.#avoid = new Uint8Array(options.routes.nodeIds.length)
    this.#health = new NodeHealth((nodeId, isLate, reason) => {
      this.#markAvoided()
      if (isLate) this.#probes.start(nodeId)
      options.onNodeLate?.(nodeId, isLate, reason)
    })
    this.#latency = new LatencyRecord({ ...defaultHedgeOptions, ...options.hedge })
    this.#probes = new Probes({
      hidden,
      encoding,
      clock,
      health: this.#health,
      transport: (nodeId) => transports.get(nodeId),
      expertOf: (nodeId) => this.#expertOf(nodeId),
    })
    this.#audits = new SideCalls(encoding, hidden, clock, auditsMax)
    this.#audit = new Audit({
      share: options.auditShare ?? 0.001,
      encoding,
      hidden,
      random: options.random ?? Math.random,
      side: this.#audits,
      copies: (layer, expert) => this.#copiesInTime(layer, expert),
      transport: (nodeId) => transports.get(nodeId),
      reference: options.reference ?? (() => undefined),
      judge: options.judge ?? (async () => null),
      found: (finding) => options.onAudit?.(finding),
    })
    this.#context = {
      clock,
      hidden,
      latency: this.#latency,
      health: this.#health,
      scratch: new OutputPool(hidden),
      routes: () => this.#routes,
      transport: (nodeId) => transports.get(nodeId),
      onUncovered: (layer, expert) => options.onUncovered?.(layer, expert),
      onFailure: (nodeId, error) => options.onFailure?.(nodeId, error),
      onHedged: (rows) => {
        this.#hedgedRows += rows
      },
    }
  }

  async dispatch(routed: RoutedRows, cancellation?: Cancellation): Promise<DispatchReport> {
    const groups = this.#freeGroups.pop() ?? new RowGroups()
    if (this.#health.lateCount > 0) this.#markAvoided()
    groupRows(groups, routed, this.#routes, this.#avoid, this.#step++)
    this.#countRows(groups, routed.layer)
    const running = new RunningDispatch(this.#context, groups, routed)
    this.#running.add(running)
    const cancel = () => running.cancel()
    cancellation?.listen(cancel)
    try {
      const ended = running.run()
      if (cancellation?.isCancelled) running.cancel()
      const report = await ended
      this.#retriedRows += report.retriedRows
      this.#sample(running)
      return report
    } finally {
      cancellation?.forget(cancel)
      this.#running.delete(running)
      if (this.#freeGroups.length < groupsKept) this.#freeGroups.push(groups)
    }
  }

  routes(): RouteTable {
    return this.#routes
  }

  setRoutes(routes: RouteTable): void {
    const nodeIds = new Set(routes.nodeIds)
    this.#routes = routes
    this.#health.retain(nodeIds)
    this.#latency.retain(nodeIds)
    this.#markAvoided()
    for (const running of [...this.#running]) running.routesChanged()
  }

  expertRows(layer: number): Float64Array {
    let rows = this.#expertRows.get(layer)
    if (!rows) {
      rows = new Float64Array(this.#routes.layers.get(layer)?.experts ?? 0)
      this.#expertRows.set(layer, rows)
    }
    return rows
  }

  nodeStats(nodeId: string): NodeDispatchStats {
    const { p50, p99 } = this.#latency.quantilesMs(nodeId)
    const answers = this.#health.answers(nodeId)
    const isLate = answers.kind === 'late'
    return { ...this.#health.counters(nodeId), p50Ms: p50, p99Ms: p99, isLate, reason: isLate ? answers.reason : '' }
  }

  stats(): DispatcherStats {
    const { compared, differing } = this.#audit.counters()
    return {
      running: this.#running.size,
      dispatches: this.#step,
      retriedRows: this.#retriedRows,
      hedgedRows: this.#hedgedRows,
      audited: compared,
      auditsDiffering: differing,
    }
  }

  cancelAll(): void {
    for (const running of [...this.#running]) running.cancel()
  }

  close(): void {
    this.#probes.close()
    this.#audits.close()
  }

  #markAvoided(): void {
    const { nodeIds } = this.#routes
    const nowMs = this.#options.clock.nowMs()
    if (this.#avoid.length !== nodeIds.length) this.#avoid = new Uint8Array(nodeIds.length)
    for (let node = 0; node < nodeIds.length; node++) {
      this.#avoid[node] = this.#health.avoidance(nodeIds[node] ?? '', nowMs)
    }
  }

  #countRows(groups: RowGroups, layer: number): void {
    const total = this.expertRows(layer)
    for (let expert = 0; expert < total.length; expert++) {
      total[expert] = (total[expert] ?? 0) + (groups.expertRows[expert] ?? 0)
    }
  }

  /** Some expert with a copy on the node. */
  #expertOf(nodeId: string): { layer: number; expert: number } | null {
    const node = this.#routes.nodeIds.indexOf(nodeId)
    for (const [layer, { nodes, starts }] of this.#routes.layers) {
      const copy = nodes.indexOf(node)
      if (copy >= 0) return { layer, expert: starts.findIndex((start) => start > copy) - 1 }
    }
    return null
  }

  #copiesInTime(layer: number, expert: number): string[] {
    const routes = this.#routes.layers.get(layer)
    const copies = routes?.nodes.subarray(routes.starts[expert] ?? 0, routes.starts[expert + 1] ?? 0) ?? []
    const nodeIds = Array.from(copies, (node) => this.#routes.nodeIds[node] ?? '')
    return nodeIds.filter((nodeId) => !this.#health.isLate(nodeId))
  }

  #sample({ groups, routed, doneBy }: RunningDispatch): void {
    const output = this.#audit.next(groups.pairCount)
    if (output === null) return
    let entry = 0
    while ((groups.rowStart[entry + 1] ?? groups.pairCount) <= output) entry += 1
    const { hidden } = this.#options
    void this.#audit.check(
      routed.layer,
      groups.entryExpert[entry] ?? 0,
      routed.rows,
      groups.rowIndices[output] ?? 0,
      doneBy[entry] ?? '',
      routed.outputs.data.subarray(output * hidden, (output + 1) * hidden),
    )
  }
}
