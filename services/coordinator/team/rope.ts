import type { RopeSpec } from '../../model/spec.ts'

/**
 * Cosines and sines of a rotary embedding, [positions, headDim / 2] each, grown on demand. They are made here and not
 * in a graph because ONNX Runtime's vectorised Sin and Cos depend on a value's place in the buffer.
 */
export class RopeTable {
  readonly #spec: RopeSpec
  #cos = new Float32Array(0)
  #sin = new Float32Array(0)
  #positions = 0

  constructor(spec: RopeSpec) {
    this.#spec = spec
  }

  /** After this, `rotate` takes positions below `positions`. */
  reserve(positions: number): void {
    if (positions <= this.#positions) return
    const { inverseFrequencies, attentionFactor } = this.#spec
    const half = inverseFrequencies.length
    const count = Math.max(positions, 2 * this.#positions, 256)
    const cos = new Float32Array(count * half)
    const sin = new Float32Array(count * half)
    cos.set(this.#cos)
    sin.set(this.#sin)
    for (let position = this.#positions; position < count; position++) {
      for (let i = 0; i < half; i++) {
        // The reference implementations multiply in f32.
        const angle = Math.fround(position * Math.fround(inverseFrequencies[i] ?? 0))
        cos[position * half + i] = Math.cos(angle) * attentionFactor
        sin[position * half + i] = Math.sin(angle) * attentionFactor
      }
    }
    this.#cos = cos
    this.#sin = sin
    this.#positions = count
  }

  /** Copies a head [headDim] and turns its halves: (a, b) → (a cos - b sin, b cos + a sin). */
  rotate(from: Float32Array, fromAt: number, to: Float32Array, toAt: number, position: number): void {
    const cos = this.#cos
    const sin = this.#sin
    const half = this.#spec.inverseFrequencies.length
    const row = position * half
    for (let i = 0; i < half; i++) {
      const a = from[fromAt + i] ?? 0
      const b = from[fromAt + half + i] ?? 0
      const c = cos[row + i] ?? 0
      const s = sin[row + i] ?? 0
      to[toAt + i] = a * c - b * s
      to[toAt + half + i] = b * c + a * s
    }
  }
}
