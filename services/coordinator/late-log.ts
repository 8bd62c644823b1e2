import type { Clock, Timer } from '../dispatch/clock.ts'
import type { Logger } from '../telemetry/log.ts'

/** Nodes are late for a moment all the time, and hedging deals with it; people hear of those that stay late. */
const toldAfterMs = 500

/** What the log says about nodes that do not answer in time. */
export class LateLog {
  readonly #clock: Clock
  readonly #log: Pick<Logger, 'warn' | 'debug'>
  /** Late ones: the timer, or null once people were told. */
  readonly #late = new Map<string, Timer | null>()

  constructor(clock: Clock, log: Pick<Logger, 'warn' | 'debug'>) {
    this.#clock = clock
    this.#log = log
  }

  note(node: string, isLate: boolean, reason: string): void {
    const known = this.#late.get(node)
    known?.cancel()
    if (isLate) {
      this.#log.debug({ node, reason }, 'late')
      const tell = () => {
        this.#late.set(node, null)
        this.#log.warn({ node, reason }, `late for ${toldAfterMs} ms`)
      }
      this.#late.set(node, this.#clock.after(toldAfterMs, tell))
      return
    }
    this.#late.delete(node)
    if (known === null) this.#log.warn({ node }, 'answers again')
    else this.#log.debug({ node, reason }, 'answers again')
  }

  close(): void {
    for (const timer of this.#late.values()) timer?.cancel()
    this.#late.clear()
  }
}
