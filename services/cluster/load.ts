import type { PublishedLoad } from './store.ts'

/** Weight of the last second in a moving average: load of some seconds ago counts for about half. */
const alpha = 0.2

/** Rows per second of each (layer, expert), from counters that only grow. */
export class LoadMeter {
  readonly #layers: readonly { layer: number; experts: number }[]
  readonly #counted = new Map<number, Float64Array>()
  readonly #rates = new Map<number, Float64Array>()
  #lastMs: number | null = null

  constructor(layers: readonly { layer: number; experts: number }[]) {
    this.#layers = layers
  }

  /** `rowsOf(layer)`: [experts] rows since the start. */
  update(nowMs: number, rowsOf: (layer: number) => Float64Array): void {
    const seconds = this.#lastMs === null ? null : (nowMs - this.#lastMs) / 1000
    this.#lastMs = nowMs
    for (const { layer, experts } of this.#layers) {
      const rows = rowsOf(layer)
      const counted = this.#counted.get(layer) ?? new Float64Array(experts)
      const rates = this.#rates.get(layer) ?? new Float64Array(experts)
      for (let expert = 0; seconds !== null && seconds > 0 && expert < experts; expert++) {
        const rate = ((rows[expert] ?? 0) - (counted[expert] ?? 0)) / seconds
        rates[expert] = (1 - alpha) * (rates[expert] ?? 0) + alpha * Math.max(0, rate)
      }
      counted.set(rows)
      this.#counted.set(layer, counted)
      this.#rates.set(layer, rates)
    }
  }

  published(): PublishedLoad {
    return {
      layers: [...this.#rates].map(([layer, rates]) => ({ layer, rowsPerSecond: Array.from(rates, round) })),
    }
  }
}

function round(rate: number): number {
  return Math.round(rate * 100) / 100
}

/** The sum over all coordinators, by layer. */
export function mergeLoads(published: ReadonlyMap<string, PublishedLoad>): Map<number, Float64Array> {
  const merged = new Map<number, Float64Array>()
  for (const { layers } of published.values()) {
    for (const { layer, rowsPerSecond } of layers) {
      const sum = merged.get(layer) ?? new Float64Array(rowsPerSecond.length)
      rowsPerSecond.forEach((rate, expert) => {
        sum[expert] = (sum[expert] ?? 0) + rate
      })
      merged.set(layer, sum)
    }
  }
  return merged
}
