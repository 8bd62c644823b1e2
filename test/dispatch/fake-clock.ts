import type { Clock } from '../../services/dispatch/clock.ts'

type Pending = { atMs: number; order: number; work: () => void }

/** Time that stands still until a test moves it. */
export class FakeClock implements Clock {
  #nowMs = 0
  #orders = 0
  #pending: Pending[] = []

  nowMs(): number {
    return this.#nowMs
  }

  after(delayMs: number, work: () => void) {
    const entry = { atMs: this.#nowMs + delayMs, order: this.#orders++, work }
    this.#pending.push(entry)
    return {
      cancel: () => {
        this.#pending = this.#pending.filter((other) => other !== entry)
      },
    }
  }

  get timers(): number {
    return this.#pending.length
  }

  /** Moves on, timer by timer; what they set off gets its turn in between. */
  async advance(ms: number): Promise<void> {
    const end = this.#nowMs + ms
    for (;;) {
      await settle()
      const next = this.#pending.toSorted((a, b) => a.atMs - b.atMs || a.order - b.order)[0]
      if (!next || next.atMs > end) break
      this.#pending = this.#pending.filter((other) => other !== next)
      this.#nowMs = next.atMs
      next.work()
    }
    this.#nowMs = end
    await settle()
  }
}

/** Lets everything that is ready run. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve()
}
