/**
 * Tells calls that nobody waits for them any more: what an AbortController does, without an event for each call of each
 * layer.
 */
export class Cancellation {
  #isCancelled = false
  #listeners: (() => void)[] = []

  get isCancelled(): boolean {
    return this.#isCancelled
  }

  /** Calls all listeners, the first time. */
  cancel(): void {
    if (this.#isCancelled) return
    this.#isCancelled = true
    for (const listener of this.#listeners.splice(0)) listener()
  }

  listen(listener: () => void): void {
    this.#listeners.push(listener)
  }

  forget(listener: () => void): void {
    const index = this.#listeners.indexOf(listener)
    if (index >= 0) this.#listeners.splice(index, 1)
  }
}
