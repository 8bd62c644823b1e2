/** Time as the cluster's shells see it: passed in, so that a test can replay a cluster's worst hour. */
export interface Clock {
  /** Monotonic, in ms; only differences have a meaning. */
  nowMs(): number
  /** Calls `work` once, after at least `delayMs`. The handle cancels it. */
  after(delayMs: number, work: () => void): { cancel(): void }
}

/** Its timers do not keep a process alive: what serves does. */
export const systemClock: Clock = {
  nowMs: () => performance.now(),
  after(delayMs, work) {
    const timer = setTimeout(work, delayMs)
    timer.unref()
    return { cancel: () => clearTimeout(timer) }
  },
}
