import type { LayerTrace } from './request.ts'

/** The experts of every row of a step, kept while its layers run. */
export class TraceRecorder {
  readonly #rows: LayerTrace[][]

  constructor(rows: number) {
    this.#rows = Array.from({ length: rows }, () => [])
  }

  record(layer: number, expertsPerToken: number, ids: Int32Array, weights: Float32Array): void {
    this.#rows.forEach((row, index) => {
      const from = index * expertsPerToken
      row.push({
        layer,
        expertIds: [...ids.subarray(from, from + expertsPerToken)],
        weights: [...weights.subarray(from, from + expertsPerToken)],
      })
    })
  }

  of(row: number): LayerTrace[] {
    return this.#rows[row] ?? []
  }
}
