import { kernelMs } from '../../runtime/inside.ts'
import type { StepBuffers } from './layout.ts'

/**
 * How long a step was inside kernels, on whichever thread was there longest. Between two barriers every thread writes
 * down its own time; behind the second, one adds the longest up while the others write to the other row.
 */
export class Stretches {
  readonly #buffers: Pick<StepBuffers, 'inside' | 'stretches'>
  readonly #threads: number
  readonly #thread: number
  #row = 0
  #startedMs = kernelMs()

  constructor(buffers: Pick<StepBuffers, 'inside' | 'stretches'>, thread: number) {
    this.#buffers = buffers
    this.#threads = buffers.stretches.length / 2
    this.#thread = thread
  }

  /** Before a barrier, or the end of a command. */
  end(): void {
    this.#buffers.stretches[this.#row * this.#threads + this.#thread] = kernelMs() - this.#startedMs
  }

  /** Behind it. */
  begin(): void {
    const { inside, stretches } = this.#buffers
    const from = this.#row * this.#threads
    if (this.#thread === 0) {
      let longest = 0
      for (let thread = 0; thread < this.#threads; thread++) longest = Math.max(longest, stretches[from + thread] ?? 0)
      inside[0] = (inside[0] ?? 0) + longest
    }
    this.#row = 1 - this.#row
    stretches[this.#row * this.#threads + this.#thread] = 0
    this.#startedMs = kernelMs()
  }
}
