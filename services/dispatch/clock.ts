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

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  after(delayMs, work) {
    const timer = setTimeout(work, delayMs)
    return { cancel: () => clearTimeout(timer) }
  },
}
