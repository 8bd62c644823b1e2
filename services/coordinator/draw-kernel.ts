import { readFileSync } from 'node:fs'
import { addKernelMs } from '../runtime/inside.ts'
import { createWasmMemory, instantiateKernel, wasmPageBytes } from '../runtime/wasm.ts'

/** `team/kernel/sampling.ts`, compiled. Its bytes are part of what a coordinator's bits depend on. */
export const drawKernelBytes = readFileSync(new URL('./team/kernel/sampling.wasm', import.meta.url))

const blockTokens = 64

/** Draws from whole vocabularies. */
export class DrawKernel {
  readonly #logits: Float32Array
  readonly #draw: (scale: number, share: number) => number

  constructor(vocabulary: number) {
    const padded = Math.ceil(vocabulary / blockTokens) * blockTokens
    const [logits, weights, sums] = [0, padded * 4, padded * 8]
    const pages = Math.ceil((sums + (padded / blockTokens) * 8) / wasmPageBytes)
    const memory = createWasmMemory(pages, pages)
    const { draw } = instantiateKernel<{
      draw(logits: number, count: number, scale: number, share: number, weights: number, sums: number): number
    }>(drawKernelBytes, memory)
    this.#logits = new Float32Array(memory.buffer, logits, padded).fill(Number.NEGATIVE_INFINITY)
    this.#draw = (scale, share) => draw(logits, vocabulary, scale, share, weights, sums)
  }

  /**
   * The token at `share` (0 <= share < 1) of the mass of softmax(logits / temperature), in ascending id; -1 where no logit
   * is finite or one is not a number. Weights in f32, sums in f64.
   */
  draw(logits: Float32Array, temperature: number, share: number): number {
    const startedMs = performance.now()
    this.#logits.set(logits)
    const id = this.#draw(1 / temperature, share)
    addKernelMs(performance.now() - startedMs)
    return id
  }
}
