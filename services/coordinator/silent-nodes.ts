import type { Clock, Timer } from '../dispatch/clock.ts'

export type SilentNodesOptions = {
  clock: Clock
  /** A node became suspected: whoever plans should look now. */
  onSuspect: () => void
}

/**
 * A node that gives no connection for so long is planned around, though its lease may still run. Rows go round it from
 * the first moment on; this is about copies, whose move costs more than a short break does.
 */
const suspectAfterMs = 500

/** Expert nodes whose connection is lost, and since when. */
export class SilentNodes {
  readonly #options: SilentNodesOptions
  readonly #silent = new Map<string, { sinceMs: number; timer: Timer }>()

  constructor(options: SilentNodesOptions) {
    this.#options = options
  }

  /** Whether this is news. */
  lost(nodeId: string): boolean {
    if (this.#silent.has(nodeId)) return false
    const { clock, onSuspect } = this.#options
    this.#silent.set(nodeId, { sinceMs: clock.nowMs(), timer: clock.after(suspectAfterMs, onSuspect) })
    return true
  }

  answers(nodeId: string): void {
    this.#silent.get(nodeId)?.timer.cancel()
    this.#silent.delete(nodeId)
  }

  /** Forgets nodes that have left the cluster. */
  retain(has: (nodeId: string) => boolean): void {
    for (const nodeId of [...this.#silent.keys()]) if (!has(nodeId)) this.answers(nodeId)
  }

  isSilent(nodeId: string): boolean {
    return this.#silent.has(nodeId)
  }

  suspects(): string[] {
    const nowMs = this.#options.clock.nowMs()
    return [...this.#silent].filter(([, { sinceMs }]) => nowMs - sinceMs >= suspectAfterMs).map(([nodeId]) => nodeId)
  }

  close(): void {
    this.retain(() => false)
  }
}
