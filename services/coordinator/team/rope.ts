import type { RopeSpec } from '../../model/spec.ts'
import type { AttentionKernel, Span } from './attention-kernel.ts'

/**
 * Cosines and sines of a rotary embedding in the kernel's memory, [positions, headDim / 2] each, grown on demand. Made
 * here, since WebAssembly has neither.
 */
export class RopeTable {
  readonly #kernel: AttentionKernel
  readonly #spec: RopeSpec
  readonly #cos: Span = { at: 0, bytes: 0 }
  readonly #sin: Span = { at: 0, bytes: 0 }
  #positions = 0

  constructor(kernel: AttentionKernel, spec: RopeSpec) {
    this.#kernel = kernel
    this.#spec = spec
  }

  /** After this, positions below `positions` have their places. */
  reserve(positions: number): void {
    if (positions <= this.#positions) return
    const { inverseFrequencies, attentionFactor } = this.#spec
    const half = inverseFrequencies.length
    const count = Math.max(positions, 2 * this.#positions, 256)
    const known = this.#positions
    const [oldCos, oldSin] = [this.#cos.at / 4, this.#sin.at / 4]
    // Until both tables are there, none of their places is.
    this.#positions = 0
    const cos = this.#kernel.reserve(this.#cos, count * half * 4) / 4
    const sin = this.#kernel.reserve(this.#sin, count * half * 4) / 4
    const { floats } = this.#kernel
    floats.copyWithin(cos, oldCos, oldCos + known * half)
    floats.copyWithin(sin, oldSin, oldSin + known * half)
    for (let position = known; position < count; position++) {
      for (let i = 0; i < half; i++) {
        // The reference implementations multiply in f32.
        const angle = Math.fround(position * Math.fround(inverseFrequencies[i] ?? 0))
        floats[cos + position * half + i] = Math.cos(angle) * attentionFactor
        floats[sin + position * half + i] = Math.sin(angle) * attentionFactor
      }
    }
    this.#positions = count
  }

  /** Addresses of a position's cosines and sines. */
  cosAt(position: number): number {
    return this.#cos.at + position * this.#spec.inverseFrequencies.length * 4
  }

  sinAt(position: number): number {
    return this.#sin.at + position * this.#spec.inverseFrequencies.length * 4
  }
}
