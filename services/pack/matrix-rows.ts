import type { CheckpointTensor, Weights } from '../checkpoint/weights.ts'

/**
 * A linear layer as it is published: [outputs, inputs], perhaps over several tensors whose outputs lie side by side.
 * Read in pieces of whole rows, so that memory does not depend on its size.
 */
export class MatrixRows {
  readonly inputs: number
  readonly outputs: number
  readonly #weights: Weights
  readonly #pieces: readonly CheckpointTensor[]

  /** Throws CHECKPOINT_INVALID for a tensor that is missing or of another shape, MODEL_UNSUPPORTED for its type. */
  constructor(weights: Weights, tensors: readonly string[], inputs: number, outputs: number) {
    this.inputs = inputs
    this.outputs = outputs
    this.#weights = weights
    this.#pieces = tensors.map((name) => weights.tensor(name, [outputs / tensors.length, inputs]))
    for (const piece of this.#pieces) weights.dtype(piece)
  }

  /** Rows (outputs) `start …` as f32 to `out` [count, inputs]. */
  read(start: number, count: number, out: Float32Array): void {
    const { inputs } = this
    let pieceStart = 0
    for (const piece of this.#pieces) {
      const pieceEnd = pieceStart + (piece.shape[0] ?? 0)
      const from = Math.max(start, pieceStart)
      const to = Math.min(start + count, pieceEnd)
      if (from < to) {
        this.#weights.readFloats(
          piece,
          (from - pieceStart) * inputs,
          (to - from) * inputs,
          out,
          (from - start) * inputs,
        )
      }
      pieceStart = pieceEnd
    }
  }
}
