import { nextWord, streamFor, type XorshiftState } from '../random.ts'
import type { BenchShape } from '../shape.ts'

/**
 * Expert choices as a router might make them: k different ones a row, drawn by popularity. Popularity follows Zipf's
 * law: the expert of rank r in its layer is wanted in proportion to 1 / r^exponent; 0 is an even load. Which expert has
 * which rank differs from layer to layer.
 */
export class ZipfRouter {
  readonly #shape: BenchShape
  /** By layer, [experts] logarithms of the popularities. */
  readonly #popularity: Float64Array[]
  readonly #random: XorshiftState
  readonly #keys: Float64Array
  readonly #order: number[]

  constructor(shape: BenchShape, exponent: number, seed: number) {
    this.#shape = shape
    this.#random = streamFor(seed, 'routing')
    this.#popularity = Array.from({ length: shape.layers }, (_, layer) =>
      popularities(shape.experts, exponent, streamFor(seed, `popularity ${layer}`)),
    )
    this.#keys = new Float64Array(shape.experts)
    this.#order = Array.from({ length: shape.experts }, (_, expert) => expert)
  }

  /** [rows, expertsPerToken], ascending in each row. */
  draw(layer: number, rows: number): Int32Array {
    const { expertsPerToken } = this.#shape
    const popularity = this.#popularity[layer] ?? new Float64Array()
    const ids = new Int32Array(rows * expertsPerToken)
    for (let row = 0; row < rows; row++) {
      // The k largest of log p + Gumbel noise are k draws by p without putting back.
      for (let expert = 0; expert < this.#keys.length; expert++) {
        this.#keys[expert] = (popularity[expert] ?? 0) - Math.log(-Math.log(uniform(this.#random)))
      }
      this.#order.sort((a, b) => (this.#keys[b] ?? 0) - (this.#keys[a] ?? 0))
      const chosen = this.#order.slice(0, expertsPerToken).sort((a, b) => a - b)
      ids.set(chosen, row * expertsPerToken)
    }
    return ids
  }

  /** What a leader would have counted: rows of each expert of a layer over many draws, [experts]. */
  loads(layer: number, rows: number): Float64Array {
    const loads = new Float64Array(this.#shape.experts)
    for (const expert of this.draw(layer, rows)) loads[expert] = (loads[expert] ?? 0) + 1
    return loads
  }
}

/** Between 0 and 1, neither of them. */
function uniform(state: XorshiftState): number {
  return (nextWord(state) + 0.5) / 2 ** 32
}

function popularities(experts: number, exponent: number, random: XorshiftState): Float64Array {
  const logs = Float64Array.from({ length: experts }, (_, rank) => -exponent * Math.log(rank + 1))
  for (let last = experts - 1; last > 0; last--) {
    const other = nextWord(random) % (last + 1)
    const kept = logs[last] ?? 0
    logs[last] = logs[other] ?? 0
    logs[other] = kept
  }
  return logs
}
