import type { Clock, Timer } from './clock.ts'

/** A timer that fires so much later than asked tells of a busy thread here, not of a late node. */
const stallMs = 2

/** One timer for the first of several moments. It fires after what came while the thread was busy has had its turn. */
export class DueTimer {
  readonly #clock: Clock
  readonly #onDue: () => void
  #set: { dueMs: number; timer: Timer } | null = null
  #isGraceGiven = false

  constructor(clock: Clock, onDue: () => void) {
    this.#clock = clock
    this.#onDue = onDue
  }

  /** At `dueMs`, or when it was armed for before, if that is earlier. */
  arm(dueMs: number): void {
    if (this.#set && this.#set.dueMs <= dueMs) return
    this.cancel()
    if (dueMs < Infinity) this.#start(dueMs)
  }

  cancel(): void {
    this.#set?.timer.cancel()
    this.#set = null
  }

  #start(dueMs: number): void {
    const timer = this.#clock.after(Math.max(0, dueMs - this.#clock.nowMs()), () => this.#fire(dueMs))
    this.#set = { dueMs, timer }
  }

  #fire(dueMs: number): void {
    this.#set = null
    const nowMs = this.#clock.nowMs()
    if (nowMs - dueMs > stallMs && !this.#isGraceGiven) {
      this.#isGraceGiven = true
      this.#start(nowMs + 1)
      return
    }
    this.#isGraceGiven = false
    this.#onDue()
  }
}
