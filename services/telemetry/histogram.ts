/** Counts of values by size: fixed memory, and nothing is allocated when a value is recorded. */
export class Histogram {
  /** Ascending; a value belongs to the first bound that is not below it. */
  readonly bounds: readonly number[]
  readonly #counts: Float64Array
  #sum = 0

  constructor(bounds: readonly number[]) {
    this.bounds = bounds
    // One more than bounds: what is beyond the last.
    this.#counts = new Float64Array(bounds.length + 1)
  }

  record(value: number): void {
    let low = 0
    let high = this.bounds.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.bounds[middle] ?? 0) < value) low = middle + 1
      else high = middle
    }
    this.#counts[low] = (this.#counts[low] ?? 0) + 1
    this.#sum += value
  }

  /** [bounds + 1], not cumulative. Owned by the histogram, which goes on counting. */
  get counts(): Readonly<Float64Array> {
    return this.#counts
  }

  get sum(): number {
    return this.#sum
  }
}

/** `first`, `first * ratio`, …: the error of a quantile is the same share of it everywhere. */
export function geometricBounds(first: number, ratio: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first * ratio ** index)
}

/**
 * The value that a share `q` (0 … 1) of the counted values does not exceed, as if values were spread evenly within a
 * bucket; null without any. `buckets` by ascending upper bound; the lower bound of the first is 0 or `lower`.
 */
export function quantile(
  buckets: readonly { readonly lower?: number; readonly upper: number; readonly count: number }[],
  q: number,
): number | null {
  const total = buckets.reduce((sum, { count }) => sum + count, 0)
  if (total === 0) return null
  let left = q * total
  let below = 0
  for (const { lower = below, upper, count } of buckets) {
    if (count > 0 && left <= count) return lower + (upper - lower) * (left / count)
    left -= count
    below = upper
  }
  return below
}
