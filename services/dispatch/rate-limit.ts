import type { Clock } from './clock.ts'

/**
 * Keeps a flow of bytes below a rate, over about a tenth of a second: copies of shards must not take the network from
 * the rows that tokens wait for. Those who share one limiter share its rate.
 */
export class RateLimit {
  readonly #bytesPerMs: number
  readonly #clock: Clock
  /** Until when the bytes that were let through take, at the rate. */
  #paidMs: number

  /** `bytesPerSecond` Infinity: no limit. */
  constructor(bytesPerSecond: number, clock: Clock) {
    this.#bytesPerMs = bytesPerSecond / 1000
    this.#clock = clock
    this.#paidMs = clock.nowMs()
  }

  /** Resolves when so many bytes may pass. */
  async pass(bytes: number): Promise<void> {
    const nowMs = this.#clock.nowMs()
    this.#paidMs = Math.max(this.#paidMs, nowMs - burstMs) + bytes / this.#bytesPerMs
    const waitMs = this.#paidMs - nowMs
    if (waitMs > 0) await new Promise<void>((resolve) => this.#clock.after(waitMs, resolve))
  }
}

/** What was not used for so long may be used at once. */
const burstMs = 100
