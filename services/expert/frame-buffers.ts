import { MoeshError } from '../config/errors.ts'
import {
  createOutputBuffer,
  createRowBuffer,
  type OutputBuffer,
  type RowBuffer,
  type RowEncoding,
} from '../dispatch/rows.ts'

/** Where a received call's rows and its outputs lie while the ranks work on it. */
export type FrameBuffers = { rows: RowBuffer; outputs: OutputBuffer }

type Slot = { buffers: FrameBuffers; rowCapacity: number; pairCapacity: number }
type Waiter = (slot: Slot) => void

/** Calls that wait for buffers, of all coordinators; each of them bounds its own bytes in flight well below. */
const waitersMax = 4096
const smallest = 64

/**
 * A fixed number of shared buffers, which bounds both memory and the calls that compute at once. A buffer grows by
 * doubling: ranks keep every buffer that they were shown, and so keep at most twice the largest.
 */
export class FrameBufferPool {
  readonly #encoding: RowEncoding
  readonly #hidden: number
  readonly #free: Slot[]
  readonly #waiters: Waiter[] = []

  constructor(encoding: RowEncoding, hidden: number, slots: number) {
    this.#encoding = encoding
    this.#hidden = hidden
    this.#free = Array.from({ length: slots }, () => ({
      buffers: { rows: createRowBuffer(encoding, hidden, smallest), outputs: createOutputBuffer(hidden, smallest) },
      rowCapacity: smallest,
      pairCapacity: smallest,
    }))
  }

  get waiting(): number {
    return this.#waiters.length
  }

  /** Lends buffers for as long as `work` takes, in the order of asking. Errors: QUEUE_FULL. */
  async use<T>(rows: number, pairs: number, work: (buffers: FrameBuffers) => Promise<T>): Promise<T> {
    // The last one that was given back is the one whose memory is still in the cache.
    const slot = this.#free.pop() ?? (await this.#turn())
    try {
      this.#grow(slot, rows, pairs)
      return await work(slot.buffers)
    } finally {
      const next = this.#waiters.shift()
      if (next) next(slot)
      else this.#free.push(slot)
    }
  }

  #turn(): Promise<Slot> {
    if (this.#waiters.length >= waitersMax) {
      throw new MoeshError('QUEUE_FULL', `${waitersMax} calls are waiting at this node`)
    }
    return new Promise((resolve) => this.#waiters.push(resolve))
  }

  #grow(slot: Slot, rows: number, pairs: number): void {
    if (slot.rowCapacity < rows) {
      slot.rowCapacity = 2 ** Math.ceil(Math.log2(rows))
      slot.buffers.rows = createRowBuffer(this.#encoding, this.#hidden, slot.rowCapacity)
    }
    if (slot.pairCapacity < pairs) {
      slot.pairCapacity = 2 ** Math.ceil(Math.log2(pairs))
      slot.buffers.outputs = createOutputBuffer(this.#hidden, slot.pairCapacity)
    }
  }
}
