import assert from 'node:assert/strict'
import { Cancellation } from './cancellation.ts'
import type { Clock } from './clock.ts'
import {
  createOutputBuffer,
  createRowBuffer,
  hasScale,
  type OutputBuffer,
  type RowBuffer,
  type RowEncoding,
  rowBytes,
} from './rows.ts'
import type { ExpertTransport } from './transport.ts'

/** One row for one expert, beside the token loop. */
export type SideRow = { layer: number; expert: number; rows: RowBuffer; row: number }

const patienceMs = 2000

/** Calls of a single row with buffers of their own: the row is copied, so nothing of the caller's is used later. */
export class SideCalls {
  readonly #encoding: RowEncoding
  readonly #hidden: number
  readonly #clock: Clock
  readonly #callsMax: number
  readonly #free: { rows: RowBuffer; outputs: OutputBuffer }[] = []
  readonly #underWay = new Set<Cancellation>()

  /** `callsMax`: under way at once. */
  constructor(encoding: RowEncoding, hidden: number, clock: Clock, callsMax: number) {
    this.#encoding = encoding
    this.#hidden = hidden
    this.#clock = clock
    this.#callsMax = callsMax
  }

  get isFull(): boolean {
    return this.#underWay.size >= this.#callsMax
  }

  /** The row's output, [hidden] f32. Fails as a transport does, with CANCELLED after two seconds. */
  async call(transport: ExpertTransport, { layer, expert, rows, row }: SideRow): Promise<Float32Array> {
    assert(!this.isFull)
    const buffers = this.#free.pop() ?? {
      rows: createRowBuffer(this.#encoding, this.#hidden, 1),
      outputs: createOutputBuffer(this.#hidden, 1),
    }
    const bytes = rowBytes(this.#encoding, this.#hidden)
    buffers.rows.data.set(rows.data.subarray(row * bytes, (row + 1) * bytes))
    if (hasScale(this.#encoding)) buffers.rows.scales[0] = rows.scales[row] ?? 0
    const cancellation = new Cancellation()
    this.#underWay.add(cancellation)
    const timer = this.#clock.after(patienceMs, () => cancellation.cancel())
    try {
      await transport.call(
        {
          layer,
          experts: Int32Array.of(expert),
          counts: Int32Array.of(1),
          rowIndices: Int32Array.of(0),
          rows: buffers.rows,
          outputs: buffers.outputs,
          outputStart: 0,
        },
        cancellation,
      )
      return Float32Array.from(buffers.outputs.data.subarray(0, this.#hidden))
    } finally {
      timer.cancel()
      this.#underWay.delete(cancellation)
      this.#free.push(buffers)
    }
  }

  /** Gives up what is under way. */
  close(): void {
    for (const cancellation of this.#underWay) cancellation.cancel()
  }
}
