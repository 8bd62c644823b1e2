/** Time as the dispatcher sees it: passed in, so that a test can replay a cluster's worst hour. */
export interface Clock {
  /** Monotonic, in ms; only differences have a meaning. */
  nowMs(): number
  /** Calls `work` once, after at least `delayMs`. The handle cancels it. */
  after(delayMs: number, work: () => void): Timer
}

export interface Timer {
  cancel(): void
}

type Wish = { dueMs: number; work: () => void }

/**
 * Every layer of a step sets a timer that is nearly always cancelled. So one of the system's serves them all, and stays
 * set when its wish is cancelled: the next ones are due later and find it there.
 */
class SystemClock implements Clock {
  readonly #wishes = new Set<Wish>()
  #timer: NodeJS.Timeout | null = null
  #firesMs = Infinity

  nowMs(): number {
    return performance.now()
  }

  after(delayMs: number, work: () => void): Timer {
    const wish = { dueMs: this.nowMs() + delayMs, work }
    this.#wishes.add(wish)
    if (wish.dueMs < this.#firesMs) this.#set(wish.dueMs)
    else this.#timer?.ref()
    return { cancel: () => this.#cancel(wish) }
  }

  #cancel(wish: Wish): void {
    this.#wishes.delete(wish)
    // It must not keep the process alive for nothing.
    if (this.#wishes.size === 0) this.#timer?.unref()
  }

  #set(dueMs: number): void {
    if (this.#timer) clearTimeout(this.#timer)
    this.#firesMs = dueMs
    this.#timer = setTimeout(() => this.#fire(), Math.max(0, dueMs - this.nowMs()))
  }

  #fire(): void {
    this.#timer = null
    this.#firesMs = Infinity
    const nowMs = this.nowMs()
    const due = [...this.#wishes].filter(({ dueMs }) => dueMs <= nowMs).sort((a, b) => a.dueMs - b.dueMs)
    try {
      // One of them may cancel another.
      for (const wish of due) if (this.#wishes.delete(wish)) wish.work()
    } finally {
      let nextMs = this.#firesMs
      for (const { dueMs } of this.#wishes) nextMs = Math.min(nextMs, dueMs)
      if (nextMs < this.#firesMs) this.#set(nextMs)
    }
  }
}

export const systemClock: Clock = new SystemClock()
