/** Totals since the node's start. */
export type WorkTotals = { rows: number; calls: number; waitedMs: number; computedMs: number }

/** What a node tells of its load; `busy` is a share of its ranks' time, 0 to 1. */
export type NodeLoad = { rowsPerSecond: number; busy: number; queueMs: number }

/** Old load counts less and less: after so long, a third. Longer than a burst, shorter than anybody's patience. */
const memoryMs = 5000

/** Load of a node as an exponential mean of what its totals grew by between two readings. */
export class LoadGauge {
  readonly #ranks: number
  #totals: WorkTotals = { rows: 0, calls: 0, waitedMs: 0, computedMs: 0 }
  #atMs: number
  #busy = 0
  #queueMs = 0

  constructor(ranks: number, nowMs: number) {
    this.#ranks = ranks
    this.#atMs = nowMs
  }

  read(nowMs: number, totals: WorkTotals): NodeLoad {
    const before = this.#totals
    const elapsedMs = Math.max(1, nowMs - this.#atMs)
    const calls = totals.calls - before.calls
    const isNew = 1 - Math.exp(-elapsedMs / memoryMs)
    // A long run counts when it ends, so a short interval may hold more of it than it lasted.
    const busy = Math.min(1, (totals.computedMs - before.computedMs) / (elapsedMs * Math.max(1, this.#ranks)))
    const queueMs = calls === 0 ? 0 : (totals.waitedMs - before.waitedMs) / calls
    this.#busy += isNew * (busy - this.#busy)
    this.#queueMs += isNew * (queueMs - this.#queueMs)
    this.#totals = totals
    this.#atMs = nowMs
    return { rowsPerSecond: ((totals.rows - before.rows) * 1000) / elapsedMs, busy: this.#busy, queueMs: this.#queueMs }
  }
}
