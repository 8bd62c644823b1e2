import assert from 'node:assert/strict'

/** Upper bounds grow by 2^(1/4): a quantile is at most 19 % too high. */
const bucketsPerDoubling = 4
const firstBoundMs = 1 / 64
/** 1/64 ms … 65 s; longer calls count as the longest. */
const bucketCount = 22 * bucketsPerDoubling
/** When so many are in, all counts are halved: the past fades with a half-life of about as many calls. */
const samplesMax = 1024

/** How long calls took lately: fixed memory, no allocation. */
export class LatencyHistogram {
  readonly #counts = new Uint16Array(bucketCount)
  #total = 0

  get samples(): number {
    return this.#total
  }

  record(ms: number): void {
    assert(ms >= 0)
    const exact = Math.ceil(Math.log2(ms / firstBoundMs) * bucketsPerDoubling)
    const bucket = Math.min(Math.max(exact, 0), bucketCount - 1)
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1
    this.#total += 1
    if (this.#total >= samplesMax) this.#fade()
  }

  /** An upper bound of the share `q` (0 … 1) of recent calls, in ms; 0 without any. */
  quantileMs(q: number): number {
    if (this.#total === 0) return 0
    let left = Math.max(1, Math.ceil(this.#total * q))
    for (let bucket = 0; bucket < bucketCount; bucket++) {
      left -= this.#counts[bucket] ?? 0
      if (left <= 0) return firstBoundMs * 2 ** (bucket / bucketsPerDoubling)
    }
    assert.fail('the counts do not add up to the total')
  }

  #fade(): void {
    this.#total = 0
    for (let bucket = 0; bucket < bucketCount; bucket++) {
      const half = (this.#counts[bucket] ?? 0) >>> 1
      this.#counts[bucket] = half
      this.#total += half
    }
  }
}
