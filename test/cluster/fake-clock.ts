import type { Clock } from '../../services/cluster/clock.ts'

/** Time that passes only by `advance`, timer by timer, with everything settled that each of them set off. */
export class FakeClock implements Clock {
  #nowMs = 0
  #timers: { atMs: number; order: number; work: () => void }[] = []
  #order = 0

  nowMs(): number {
    return this.#nowMs
  }

  after(delayMs: number, work: () => void): { cancel(): void } {
    const timer = { atMs: this.#nowMs + Math.max(0, delayMs), order: this.#order++, work }
    this.#timers.push(timer)
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer)
      },
    }
  }

  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms
    await settle()
    for (;;) {
      const next = this.#timers
        .filter(({ atMs }) => atMs <= endMs)
        .sort((a, b) => a.atMs - b.atMs || a.order - b.order)[0]
      if (!next) break
      this.#timers = this.#timers.filter((timer) => timer !== next)
      this.#nowMs = next.atMs
      next.work()
      await settle()
    }
    this.#nowMs = endMs
  }
}

/** Lets every promise that needs no time settle. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
