/**
 * Which nodes answer in time. A node that lets a call wait too long, or whose connection fails, is late: rows go round
 * it wherever another copy lives. It is no longer late as soon as it answers anything; while rows go round it, small
 * probes give it the chance to.
 */
export type NodeAnswers = { kind: 'answering' } | { kind: 'late'; sinceMs: number; reason: string }

export type NodeCounters = { rows: number; calls: number; failures: number; late: number }

/**
 * How much a node is to be avoided: not at all, late, gone. A busy moment makes a node late for some milliseconds; one
 * that has not answered a probe for much longer is the worse choice where all copies of an expert are late.
 */
export const avoidance = { none: 0, late: 1, gone: 2 } as const
const goneAfterMs = 100

type Node = { state: NodeAnswers; counters: NodeCounters }

export class NodeHealth {
  readonly #nodes = new Map<string, Node>()
  readonly #changed: (nodeId: string, isLate: boolean, reason: string) => void
  #lateCount = 0

  constructor(changed: (nodeId: string, isLate: boolean, reason: string) => void) {
    this.#changed = changed
  }

  get lateCount(): number {
    return this.#lateCount
  }

  isLate(nodeId: string): boolean {
    return this.#nodes.get(nodeId)?.state.kind === 'late'
  }

  /** One of `avoidance`. */
  avoidance(nodeId: string, nowMs: number): number {
    const state = this.#nodes.get(nodeId)?.state
    if (state?.kind !== 'late') return avoidance.none
    return nowMs - state.sinceMs < goneAfterMs ? avoidance.late : avoidance.gone
  }

  markLate(nodeId: string, nowMs: number, reason: string): void {
    const node = this.#node(nodeId)
    node.counters.late += 1
    if (node.state.kind === 'late') return
    node.state = { kind: 'late', sinceMs: nowMs, reason }
    this.#lateCount += 1
    this.#changed(nodeId, true, reason)
  }

  markAnswered(nodeId: string, rows: number): void {
    const node = this.#node(nodeId)
    node.counters.calls += 1
    node.counters.rows += rows
    if (node.state.kind === 'answering') return
    node.state = { kind: 'answering' }
    this.#lateCount -= 1
    this.#changed(nodeId, false, 'it answered')
  }

  countFailure(nodeId: string): void {
    this.#node(nodeId).counters.failures += 1
  }

  counters(nodeId: string): Readonly<NodeCounters> {
    return this.#nodes.get(nodeId)?.counters ?? noCounters
  }

  answers(nodeId: string): NodeAnswers {
    return this.#nodes.get(nodeId)?.state ?? { kind: 'answering' }
  }

  /** Forgets nodes that have left the cluster. */
  retain(nodeIds: ReadonlySet<string>): void {
    for (const nodeId of [...this.#nodes.keys()]) {
      if (nodeIds.has(nodeId)) continue
      if (this.isLate(nodeId)) this.#lateCount -= 1
      this.#nodes.delete(nodeId)
    }
  }

  #node(nodeId: string): Node {
    let node = this.#nodes.get(nodeId)
    if (!node) {
      node = { state: { kind: 'answering' }, counters: { ...noCounters } }
      this.#nodes.set(nodeId, node)
    }
    return node
  }
}

const noCounters: Readonly<NodeCounters> = { rows: 0, calls: 0, failures: 0, late: 0 }
