import { geometricBounds, Histogram } from '../telemetry/histogram.ts'
import { type Phase, phases, type StepBuffers } from './team/layout.ts'

/** In a `decode` step every sequence goes on behind its last token; in a `prefill` step at least one reads more. */
export const stepKinds = ['prefill', 'decode'] as const
export type StepKind = (typeof stepKinds)[number]

/** Sums over the steps of one kind since the start. Times in ms as the loop's thread sees them, but for the phases. */
export type StepTotals = {
  steps: number
  sequences: number
  rows: number
  dispatches: number
  /** From choosing the rows to handing out the tokens. The next four are parts of it. */
  wallMs: number
  /** Waiting for the team: its layers, with the head of a decode, and heads that were asked for by themselves. */
  teamMs: number
  headMs: number
  /** Waiting for experts, and of that what the slowest node of each call computed. */
  dispatchMs: number
  expertMs: number
  /** A thread of the team was inside a kernel. */
  insideMs: number
  /** [phases] the mean over the team's threads. */
  readonly phaseMs: Float64Array
  /** [phases] inside kernels, on the thread that was there longest. */
  readonly runtimeMs: Float64Array
}

/** 1 µs to 2 s in buckets 4 % wide. */
const overheadBoundsMs = geometricBounds(0.001, 2 ** (1 / 16), 21 * 16)
const combine = phases.indexOf('combine')

/**
 * Where the time of steps goes. Always on: a clock read where the loop waits, and a pass over the team's counters a
 * step; nothing is allocated. Phases are told apart by the team's threads themselves (`StepBuffers.profile`).
 */
export class StepCounters {
  readonly totals: Readonly<Record<StepKind, StepTotals>> = { prefill: emptyTotals(), decode: emptyTotals() }
  /** Of layers with one row: dispatch and combine, less what the experts computed; ms. */
  readonly oneRowOverhead = new Histogram(overheadBoundsMs)
  /** All threads of the team. */
  readonly threads: number
  readonly #buffers: Pick<StepBuffers, 'profile' | 'runtime' | 'inside'>
  readonly #nowMs: () => number
  /** The team's counters when the last step ended. */
  readonly #profileBefore: Float64Array
  readonly #runtimeBefore: Float64Array
  #insideBefore = 0
  readonly #step = { startedMs: 0, lapMs: 0, teamMs: 0, headMs: 0, dispatchMs: 0, expertMs: 0, dispatches: 0 }
  /** Of a dispatch of one row whose combine is under way; -1: none is. */
  #overheadMs = -1
  #combineBefore = 0

  constructor(buffers: Pick<StepBuffers, 'profile' | 'runtime' | 'inside'>, threads: number, nowMs: () => number) {
    this.#buffers = buffers
    this.threads = threads
    this.#nowMs = nowMs
    this.#profileBefore = new Float64Array(buffers.profile.length)
    this.#runtimeBefore = new Float64Array(buffers.runtime.length)
  }

  begin(): void {
    const step = this.#step
    step.startedMs = this.#nowMs()
    step.lapMs = step.startedMs
    step.teamMs = 0
    step.headMs = 0
    step.dispatchMs = 0
    step.expertMs = 0
    step.dispatches = 0
    this.#overheadMs = -1
  }

  /** What came since the last call was none of the waits. */
  lap(): void {
    this.#step.lapMs = this.#nowMs()
  }

  /** The team has run. */
  ranTeam(): void {
    this.#step.teamMs += this.#sinceLap()
    if (this.#overheadMs < 0) return
    this.oneRowOverhead.record(this.#overheadMs + this.#combineMs() - this.#combineBefore)
    this.#overheadMs = -1
  }

  /** A layer's outputs are there; its experts computed for `expertMs`. */
  dispatched(rows: number, expertMs: number): void {
    const waitedMs = this.#sinceLap()
    // Another machine's clock may run a little faster.
    const computedMs = Math.min(expertMs, waitedMs)
    this.#step.dispatchMs += waitedMs
    this.#step.expertMs += computedMs
    this.#step.dispatches += 1
    if (rows !== 1) return
    this.#overheadMs = waitedMs - computedMs
    this.#combineBefore = this.#combineMs()
  }

  ranHead(): void {
    this.#step.headMs += this.#sinceLap()
  }

  end(rows: number, sequences: number, kind: StepKind): void {
    const step = this.#step
    const totals = this.totals[kind]
    totals.steps += 1
    totals.sequences += sequences
    totals.rows += rows
    totals.dispatches += step.dispatches
    totals.wallMs += this.#nowMs() - step.startedMs
    totals.teamMs += step.teamMs
    totals.headMs += step.headMs
    totals.dispatchMs += step.dispatchMs
    totals.expertMs += step.expertMs
    const { profile, runtime, inside } = this.#buffers
    const insideMs = inside[0] ?? 0
    totals.insideMs += insideMs - this.#insideBefore
    this.#insideBefore = insideMs
    for (let phase = 0; phase < phases.length; phase++) {
      let spent = 0
      let inside = 0
      for (let place = phase; place < profile.length; place += phases.length) {
        spent += (profile[place] ?? 0) - (this.#profileBefore[place] ?? 0)
        inside = Math.max(inside, (runtime[place] ?? 0) - (this.#runtimeBefore[place] ?? 0))
      }
      totals.phaseMs[phase] = (totals.phaseMs[phase] ?? 0) + spent / this.threads
      totals.runtimeMs[phase] = (totals.runtimeMs[phase] ?? 0) + inside
    }
    this.#profileBefore.set(profile)
    this.#runtimeBefore.set(runtime)
  }

  /** Since the last lap, which ends. */
  #sinceLap(): number {
    const nowMs = this.#nowMs()
    const elapsedMs = nowMs - this.#step.lapMs
    this.#step.lapMs = nowMs
    return elapsedMs
  }

  /** Of the first thread; each has as many columns. */
  #combineMs(): number {
    return this.#buffers.profile[combine] ?? 0
  }
}

function emptyTotals(): StepTotals {
  return {
    steps: 0,
    sequences: 0,
    rows: 0,
    dispatches: 0,
    wallMs: 0,
    teamMs: 0,
    headMs: 0,
    dispatchMs: 0,
    expertMs: 0,
    insideMs: 0,
    phaseMs: new Float64Array(phases.length),
    runtimeMs: new Float64Array(phases.length),
  }
}

/** The phases of a step by name. */
export function namedPhases({ phaseMs, runtimeMs }: StepTotals): { name: Phase; ms: number; runtimeMs: number }[] {
  return phases.map((name, index) => ({ name, ms: phaseMs[index] ?? 0, runtimeMs: runtimeMs[index] ?? 0 }))
}
