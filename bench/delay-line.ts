import { nextWord, type XorshiftState } from './random.ts'

/**
 * One direction of a slow link, as a queue: what goes in comes out after the delay and a random part of the jitter, in
 * order, since a byte stream never overtakes itself. Decides only; whoever owns it has the clock and the sockets.
 */
export class DelayLine<T> {
  readonly #delayMs: () => number
  readonly #jitterMs: number
  readonly #random: XorshiftState
  readonly #queue: { item: T; dueMs: number }[] = []

  /** `delayMs` is asked at each `push`, so that it may change while the link is up. */
  constructor(delayMs: () => number, jitterMs: number, random: XorshiftState) {
    this.#delayMs = delayMs
    this.#jitterMs = jitterMs
    this.#random = random
  }

  get length(): number {
    return this.#queue.length
  }

  push(item: T, nowMs: number): void {
    const jitterMs = this.#jitterMs === 0 ? 0 : (nextWord(this.#random) / 2 ** 32) * this.#jitterMs
    const earliestMs = this.#queue.at(-1)?.dueMs ?? 0
    this.#queue.push({ item, dueMs: Math.max(earliestMs, nowMs + this.#delayMs() + jitterMs) })
  }

  /** When the first one is due; null when nothing is under way. */
  nextDueMs(): number | null {
    return this.#queue[0]?.dueMs ?? null
  }

  /** Takes out what is due at `nowMs`. */
  takeDue(nowMs: number): T[] {
    const waiting = this.#queue.findIndex(({ dueMs }) => dueMs > nowMs)
    return this.#queue.splice(0, waiting === -1 ? this.#queue.length : waiting).map(({ item }) => item)
  }
}
