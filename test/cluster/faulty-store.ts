import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import type { Store } from '../../services/cluster/store.ts'
import { MoeshError } from '../../services/config/errors.ts'

/** A memory store that can be away, for everybody or as one process sees it, and come back empty. */
export class FaultyStore {
  readonly #nowMs: () => number
  #store: Store
  isAway = false
  readonly cutOff = new Set<string>()
  /** Names of the calls of each process, for counting. */
  readonly calls: { process: string; name: string; atMs: number }[] = []

  readonly #listeners = new Map<() => void, string>()
  /** Hints are never relied on: without them everything must work too, only later. */
  hasHints = true
  /** What an answer of the store waits for on its way. */
  delay: ((name: string, args: readonly unknown[]) => Promise<void>) | null = null

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs
    this.#store = this.#begin()
  }

  restartEmpty(): void {
    this.#store = this.#begin()
  }

  #begin(): Store {
    const store = createMemoryStore({ nowMs: this.#nowMs })
    store.onHint(() => {
      if (this.isAway || !this.hasHints || store !== this.#store) return
      for (const [listener, process] of this.#listeners) if (!this.cutOff.has(process)) listener()
    })
    return store
  }

  /** The store as `process` reaches it. */
  seenBy(process: string): Store {
    return new Proxy({} as Store, {
      get: (_, name: keyof Store) => {
        if (name === 'kind') return 'memory'
        if (name === 'onHint') {
          return (listener: () => void) => {
            this.#listeners.set(listener, process)
            return () => void this.#listeners.delete(listener)
          }
        }
        return (...args: unknown[]) => {
          this.calls.push({ process, name, atMs: this.#nowMs() })
          if (this.isAway || this.cutOff.has(process)) {
            return Promise.reject(new MoeshError('STORE_UNREACHABLE', 'the store does not answer'))
          }
          const answer = (this.#store[name] as (...all: unknown[]) => unknown)(...args)
          return this.delay === null ? answer : this.delay(name, args).then(() => answer)
        }
      },
    })
  }
}
