import assert from 'node:assert/strict'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import { Cancellation } from './cancellation.ts'
import type { Clock, Timer } from './clock.ts'
import { DueTimer } from './due-timer.ts'
import { firstCall, repeatedCall } from './entry-calls.ts'
import type { LatencyRecord } from './hedge.ts'
import { avoidance, type NodeHealth } from './node-health.ts'
import type { OutputPool } from './output-pool.ts'
import { nobody, type RouteTable } from './route.ts'
import type { RowGroups } from './row-groups.ts'
import type { OutputBuffer } from './rows.ts'
import type { DispatchReport, ExpertCall, ExpertReply, ExpertTransport, RoutedRows } from './transport.ts'

/** What a running dispatch needs of its dispatcher. */
export type DispatchContext = {
  readonly clock: Clock
  readonly hidden: number
  readonly latency: LatencyRecord
  readonly health: NodeHealth
  readonly scratch: OutputPool
  routes(): RouteTable
  transport(nodeId: string): ExpertTransport | undefined
  onUncovered(layer: number, expert: number): void
  onFailure(nodeId: string, error: MoeshError): void
  /** Rows of a late call were sent to another copy too. */
  onHedged(rows: number): void
}

/** Rows whose copies all failed wait so long before they try them again; doubled each time. */
const retryFirstMs = 10
const retryLastMs = 500
/** An expert that only late nodes hold for so long is reported as uncovered. */
const uncoveredAfterMs = 1000

/** A call on its way. The first one of an entry writes to the outputs themselves, later ones to a buffer of their own. */
type Attempt = {
  readonly nodeId: string
  readonly entries: readonly number[]
  readonly rows: number
  readonly startedMs: number
  dueMs: number
  isLate: boolean
  readonly scratch: OutputBuffer | null
}

/** Of entries that did not simply succeed. */
type Trouble = { failed: Set<string>; refusedBy: Set<string>; isReported: boolean }

/**
 * One layer's rows on their way. An entry (an expert's rows on one node) is done when any call brought it; late and
 * failed calls are repeated on other copies. Nothing is left behind when it ends: all calls have settled, so that the
 * caller may use its buffers again.
 */
export class RunningDispatch {
  readonly groups: RowGroups
  readonly routed: RoutedRows
  /** [entries]: who brought it. */
  readonly doneBy: (string | null)[] = []
  readonly #context: DispatchContext
  readonly #cancellation = new Cancellation()
  readonly #attempts = new Set<Attempt>()
  readonly #trouble = new Map<number, Trouble>()
  readonly #waiting = new Set<number>()
  #entriesLeft: number
  readonly #lateTimer: DueTimer
  #retryTimer: Timer | null = null
  #retryMs = retryFirstMs
  #retriedRows = 0
  #computeMs = 0
  #ended: 'no' | 'done' | 'cancelled' = 'no'
  #settle: ((report: DispatchReport) => void) | null = null
  #fail: ((error: MoeshError) => void) | null = null

  constructor(context: DispatchContext, groups: RowGroups, routed: RoutedRows) {
    this.#context = context
    this.groups = groups
    this.routed = routed
    this.#entriesLeft = groups.entryCount
    this.#lateTimer = new DueTimer(context.clock, () => this.#checkLate())
    for (let entry = 0; entry < groups.entryCount; entry++) this.doneBy.push(null)
  }

  run(): Promise<DispatchReport> {
    const ended = new Promise<DispatchReport>((resolve, reject) => {
      this.#settle = resolve
      this.#fail = reject
    })
    const { groups } = this
    const { nodeIds } = this.#context.routes()
    for (let group = 0; group < groups.groupCount; group++) {
      const node = groups.groupNode[group] ?? nobody
      const from = groups.entryStart[group] ?? 0
      const to = groups.entryStart[group + 1] ?? 0
      if (node === nobody) for (let entry = from; entry < to; entry++) this.#waiting.add(entry)
      else this.#startGroup(nodeIds[node] ?? '', from, to)
    }
    if (this.#entriesLeft === 0) this.#finish('done')
    else if (this.#waiting.size > 0) this.#place([...this.#waiting])
    this.#checkLate()
    return ended
  }

  cancel(): void {
    if (this.#ended === 'no') this.#finish('cancelled')
  }

  /** Other copies may be there now. */
  routesChanged(): void {
    if (this.#ended !== 'no') return
    for (const { failed, refusedBy } of this.#trouble.values()) {
      failed.clear()
      refusedBy.clear()
    }
    this.#retryMs = retryFirstMs
    this.#place([...this.#waiting])
    for (const attempt of [...this.#attempts]) if (attempt.isLate) this.#hedge(attempt)
    this.#armLate()
  }

  #startGroup(nodeId: string, from: number, to: number): void {
    const entries: number[] = []
    for (let entry = from; entry < to; entry++) entries.push(entry)
    this.#start(nodeId, entries, null, firstCall(this.groups, this.routed, from, to))
  }

  /** Entries whose first call did not do. Their answers come to a buffer of their own, in their own order. */
  #startAgain(nodeId: string, entries: number[]): void {
    entries.sort((a, b) => this.#expert(a) - this.#expert(b))
    const rows = entries.reduce((sum, entry) => sum + this.#rows(entry), 0)
    this.#retriedRows += rows
    const scratch = this.#context.scratch.take(rows)
    this.#start(nodeId, entries, scratch, repeatedCall(this.groups, this.routed, entries, rows, scratch))
  }

  #start(nodeId: string, entries: readonly number[], scratch: OutputBuffer | null, call: ExpertCall): void {
    const { clock, latency } = this.#context
    const rows = call.rowIndices.length
    const startedMs = clock.nowMs()
    const dueMs = startedMs + latency.limitMs(call.layer, rows)
    const attempt: Attempt = { nodeId, entries, rows, startedMs, dueMs, isLate: false, scratch }
    this.#attempts.add(attempt)
    const transport = this.#context.transport(nodeId)
    const answer = transport
      ? transport.call(call, this.#cancellation)
      : Promise.reject(new MoeshError('NODE_LOST', `there is no connection to ${nodeId}`))
    answer.then(
      (reply) => this.#answered(attempt, reply),
      (thrown: unknown) => this.#failed(attempt, asMoeshError(thrown)),
    )
  }

  #answered(attempt: Attempt, reply: ExpertReply): void {
    const { clock, latency, health, hidden } = this.#context
    this.#attempts.delete(attempt)
    health.markAnswered(attempt.nodeId, attempt.rows)
    latency.record(attempt.nodeId, this.routed.layer, attempt.rows, Math.max(0, clock.nowMs() - attempt.startedMs))
    let at = 0
    for (const entry of attempt.entries) {
      const rows = this.#rows(entry)
      if (this.#ended === 'no' && this.doneBy[entry] === null) {
        if (attempt.scratch) {
          const from = attempt.scratch.data.subarray(at * hidden, (at + rows) * hidden)
          this.routed.outputs.data.set(from, (this.groups.rowStart[entry] ?? 0) * hidden)
        }
        this.doneBy[entry] = attempt.nodeId
        this.#waiting.delete(entry)
        this.#entriesLeft -= 1
      }
      at += rows
    }
    this.#computeMs = Math.max(this.#computeMs, reply.computeMs)
    this.#settled(attempt)
    if (this.#ended === 'no' && this.#entriesLeft === 0) this.#finish('done')
  }

  #failed(attempt: Attempt, error: MoeshError): void {
    const { clock, health } = this.#context
    this.#attempts.delete(attempt)
    this.#settled(attempt)
    if (this.#ended !== 'no') return
    health.countFailure(attempt.nodeId)
    const refused = error.code === 'EXPERT_NOT_HELD'
    if (!refused) health.markLate(attempt.nodeId, clock.nowMs(), error.message)
    this.#context.onFailure(attempt.nodeId, error)
    for (const entry of attempt.entries) {
      if (this.doneBy[entry] !== null) continue
      const trouble = this.#troubleOf(entry)
      // A node refuses a call for one expert that it does not hold; asked one by one, it may hold the others.
      if (refused && attempt.entries.length > 1) trouble.refusedBy.add(attempt.nodeId)
      else trouble.failed.add(attempt.nodeId)
    }
    this.#place(attempt.entries.filter((entry) => this.doneBy[entry] === null && !this.#isOnItsWayInTime(entry)))
    this.#armLate()
  }

  #settled(attempt: Attempt): void {
    if (attempt.scratch) this.#context.scratch.giveBack(attempt.scratch)
    if (this.#ended !== 'no' && this.#attempts.size === 0) this.#end()
  }

  /** Sends entries that nobody in time works on to copies that did not fail yet; what has none waits. */
  #place(entries: readonly number[]): void {
    const calls: { nodeId: string; entries: number[]; isAlone: boolean }[] = []
    const stranded: number[] = []
    for (const entry of entries) {
      const nodeId = this.#chooseCopy(entry)
      if (nodeId === null) {
        this.#waiting.add(entry)
        stranded.push(entry)
        continue
      }
      this.#waiting.delete(entry)
      const isAlone = this.#trouble.get(entry)?.refusedBy.has(nodeId) ?? false
      const together = isAlone ? undefined : calls.find((call) => call.nodeId === nodeId && !call.isAlone)
      if (together) together.entries.push(entry)
      else calls.push({ nodeId, entries: [entry], isAlone })
    }
    for (const { nodeId, entries: together } of calls) this.#startAgain(nodeId, together)
    for (const entry of stranded) this.#reportUncovered(entry)
    if (this.#waiting.size > 0) this.#armRetry()
  }

  /** A late call's entries go to other copies too; the call itself may still win. */
  #hedge(attempt: Attempt): void {
    const calls = new Map<string, number[]>()
    for (const entry of attempt.entries) {
      if (this.doneBy[entry] !== null || this.#isOnItsWayInTime(entry)) continue
      const nodeId = this.#chooseCopy(entry)
      if (nodeId !== null) calls.set(nodeId, [...(calls.get(nodeId) ?? []), entry])
      else if (this.#context.clock.nowMs() - attempt.startedMs >= uncoveredAfterMs) this.#reportUncovered(entry)
    }
    const before = this.#retriedRows
    for (const [nodeId, entries] of calls) this.#startAgain(nodeId, entries)
    this.#context.onHedged(this.#retriedRows - before)
  }

  /** Of the copies that were not tried the one that is avoided least; last, one that refused a larger call. */
  #chooseCopy(entry: number): string | null {
    const { clock, health } = this.#context
    const { nodeIds, layers } = this.#context.routes()
    const layer = layers.get(this.routed.layer)
    const expert = this.#expert(entry)
    const trouble = this.#trouble.get(entry)
    const nowMs = clock.nowMs()
    let best: string | null = null
    let bestAvoidance = Infinity
    const from = layer?.starts[expert] ?? 0
    const to = layer?.starts[expert + 1] ?? 0
    for (let copy = from; copy < to; copy++) {
      // Turned by the expert: the rows of a failed node spread over the others.
      const nodeId = nodeIds[layer?.nodes[from + ((copy - from + expert) % (to - from))] ?? 0] ?? ''
      if (trouble?.failed.has(nodeId) || this.#isOnItsWayTo(entry, nodeId)) continue
      const refused = trouble?.refusedBy.has(nodeId) ? avoidance.gone : avoidance.none
      const avoided = health.avoidance(nodeId, nowMs) + refused
      if (avoided >= bestAvoidance) continue
      best = nodeId
      bestAvoidance = avoided
    }
    return best
  }

  #reportUncovered(entry: number): void {
    const trouble = this.#troubleOf(entry)
    if (trouble.isReported) return
    trouble.isReported = true
    this.#context.onUncovered(this.routed.layer, this.#expert(entry))
  }

  #checkLate(): void {
    if (this.#ended !== 'no') return
    const { clock, health } = this.#context
    const nowMs = clock.nowMs()
    for (const attempt of [...this.#attempts]) {
      if (attempt.dueMs > nowMs) continue
      if (!attempt.isLate) {
        attempt.isLate = true
        const waitedMs = Math.round(nowMs - attempt.startedMs)
        health.markLate(attempt.nodeId, nowMs, `a call of layer ${this.routed.layer} waits for ${waitedMs} ms`)
      }
      // Looked at again only to report what stays uncovered.
      attempt.dueMs = nowMs < attempt.startedMs + uncoveredAfterMs ? attempt.startedMs + uncoveredAfterMs : Infinity
      this.#hedge(attempt)
    }
    this.#armLate()
  }

  /** One timer for all calls of the dispatch: at the first moment when one of them is late. */
  #armLate(): void {
    if (this.#ended !== 'no') return
    let dueMs = Infinity
    for (const attempt of this.#attempts) dueMs = Math.min(dueMs, attempt.dueMs)
    this.#lateTimer.arm(dueMs)
  }

  #armRetry(): void {
    if (this.#retryTimer) return
    const delayMs = this.#retryMs
    this.#retryMs = Math.min(retryLastMs, this.#retryMs * 2)
    this.#retryTimer = this.#context.clock.after(delayMs, () => {
      this.#retryTimer = null
      if (this.#ended !== 'no') return
      for (const entry of this.#waiting) this.#trouble.get(entry)?.failed.clear()
      this.#place([...this.#waiting])
      this.#armLate()
    })
  }

  #finish(how: 'done' | 'cancelled'): void {
    assert(this.#ended === 'no')
    this.#ended = how
    this.#lateTimer.cancel()
    this.#retryTimer?.cancel()
    if (this.#attempts.size === 0) this.#end()
    else this.#cancellation.cancel()
  }

  #end(): void {
    if (this.#ended === 'done') this.#settle?.({ retriedRows: this.#retriedRows, computeMs: this.#computeMs })
    else this.#fail?.(new MoeshError('CANCELLED', `the dispatch of layer ${this.routed.layer} was given up`))
  }

  #isOnItsWayInTime(entry: number): boolean {
    for (const attempt of this.#attempts) if (!attempt.isLate && attempt.entries.includes(entry)) return true
    return false
  }

  #isOnItsWayTo(entry: number, nodeId: string): boolean {
    for (const attempt of this.#attempts) {
      if (attempt.nodeId === nodeId && attempt.entries.includes(entry)) return true
    }
    return false
  }

  #troubleOf(entry: number): Trouble {
    let trouble = this.#trouble.get(entry)
    if (!trouble) {
      trouble = { failed: new Set(), refusedBy: new Set(), isReported: false }
      this.#trouble.set(entry, trouble)
    }
    return trouble
  }

  #expert(entry: number): number {
    return this.groups.entryExpert[entry] ?? 0
  }

  #rows(entry: number): number {
    return this.groups.entryRows[entry] ?? 0
  }
}
