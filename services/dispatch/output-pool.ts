import { createOutputBuffer, type OutputBuffer } from './rows.ts'

/** Buffers kept for later: a retry needs one or two, and ranks keep what they attached once. */
const keptMax = 8

/** Output buffers for calls that are made again: their answers have another order than the first call's. */
export class OutputPool {
  readonly #hidden: number
  readonly #free: OutputBuffer[] = []

  constructor(hidden: number) {
    this.#hidden = hidden
  }

  /** Room for at least `rows`. */
  take(rows: number): OutputBuffer {
    const index = this.#free.findIndex(({ data }) => data.length >= rows * this.#hidden)
    const [kept] = index < 0 ? [] : this.#free.splice(index, 1)
    return kept ?? createOutputBuffer(this.#hidden, 2 ** Math.ceil(Math.log2(Math.max(rows, 8))))
  }

  /** Only when nobody writes to it any more. */
  giveBack(buffer: OutputBuffer): void {
    if (this.#free.length >= keptMax) this.#free.shift()
    this.#free.push(buffer)
    this.#free.sort((a, b) => a.data.length - b.data.length)
  }
}
