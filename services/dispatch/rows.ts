import type { WeightFormat } from '../model/format.ts'

/**
 * How a row (one token's normed hidden vector) travels to an expert. The 8-bit formats quantise rows before they are
 * dispatched: the expert would do the same, and the bits are equal, for a half or a quarter of the bytes.
 *
 * | encoding | per row | scale |
 * |---|---|---|
 * | `f32` | hidden f32 | none |
 * | `u8` | hidden u8, x = (u - 128) * scale | one f32 |
 * | `u8x2` | hidden u8 high halves, then hidden u8 low halves, x = ((hi - 128) * 256 + (lo - 128)) * scale | one f32 |
 */
export type RowEncoding = 'f32' | 'u8' | 'u8x2'

export function rowEncoding(format: WeightFormat): RowEncoding {
  switch (format) {
    case 'f32':
    case 'int4':
      return 'f32'
    case 'int8':
      return 'u8x2'
    case 'int8-fast':
      return 'u8'
  }
}

/** Bytes of one encoded row without its scale. */
export function rowBytes(encoding: RowEncoding, hidden: number): number {
  return encoding === 'f32' ? hidden * 4 : encoding === 'u8' ? hidden : hidden * 2
}

export function hasScale(encoding: RowEncoding): boolean {
  return encoding !== 'f32'
}

/**
 * Encoded rows in shared memory, so that ranks read them without a copy.
 * `data`: [capacity, rowBytes] u8; `scales`: [capacity] f32 (unused for `f32`).
 */
export type RowBuffer = {
  /** Names the memory towards ranks: they attach a buffer once and keep it by this id. */
  readonly id: number
  readonly data: Uint8Array<SharedArrayBuffer>
  readonly scales: Float32Array<SharedArrayBuffer>
}

/** Expert outputs in shared memory: [capacity, hidden] f32, with room for a reply around them. */
export type OutputBuffer = {
  readonly id: number
  readonly data: Float32Array<SharedArrayBuffer>
}

/** Bytes, a cache line: what a reply has before and after its outputs. */
const replyRoom = 64

let buffersMade = 0

export function createRowBuffer(encoding: RowEncoding, hidden: number, capacity: number): RowBuffer {
  buffersMade += 1
  return {
    id: buffersMade,
    data: new Uint8Array(new SharedArrayBuffer(capacity * rowBytes(encoding, hidden))),
    scales: new Float32Array(new SharedArrayBuffer(hasScale(encoding) ? capacity * 4 : 0)),
  }
}

export function createOutputBuffer(hidden: number, capacity: number): OutputBuffer {
  buffersMade += 1
  const values = capacity * hidden
  const memory = new SharedArrayBuffer(replyRoom + values * 4 + replyRoom)
  return { id: buffersMade, data: new Float32Array(memory, replyRoom, values) }
}
