/**
 * Inner loops of packing: plain numbers and typed arrays. A matrix arrives as published, row by row, one row an output
 * channel [inputs]; our layouts want inputs first, so most loops turn it on the way.
 */

/** v + this - this rounds a double below 2^51 to the nearest integer, ties to even: faster than Math.round. */
const rounding = 6755399441055744

/** Rows (outputs) and inputs of a tile: a tile's lines stay in the first cache while it is turned. */
const tileRows = 32
const tileInputs = 16

/** Inputs `from … to` of `count` rows [inputs] into `out` [to - from, outputs], columns `column …`. */
export function transposeRows(
  rows: Float32Array,
  count: number,
  inputs: number,
  from: number,
  to: number,
  out: Float32Array,
  outputs: number,
  column: number,
): void {
  for (let row0 = 0; row0 < count; row0 += tileRows) {
    const rowEnd = Math.min(count, row0 + tileRows)
    for (let k0 = from; k0 < to; k0 += tileInputs) {
      const kEnd = Math.min(to, k0 + tileInputs)
      for (let row = row0; row < rowEnd; row++) {
        let read = row * inputs + k0
        let write = (k0 - from) * outputs + column + row
        for (let k = k0; k < kEnd; k++) {
          out[write] = rows[read] as number
          read += 1
          write += outputs
        }
      }
    }
  }
}

/** The scale of each row, max|w| / 127, to `scales[column …]`; 0 for a row of zeros. */
export function int8Scales(
  rows: Float32Array,
  count: number,
  inputs: number,
  scales: Float32Array,
  column: number,
): void {
  for (let row = 0; row < count; row++) {
    let max = 0
    const end = (row + 1) * inputs
    for (let i = row * inputs; i < end; i++) {
      const size = Math.abs(rows[i] as number)
      if (size > max) max = size
    }
    scales[column + row] = max / 127
  }
}

/** As `transposeRows`, each element divided by its row's scale and rounded: within ±127. */
export function quantiseInt8(
  rows: Float32Array,
  count: number,
  inputs: number,
  from: number,
  to: number,
  scales: Float32Array,
  out: Int8Array,
  outputs: number,
  column: number,
): void {
  for (let row0 = 0; row0 < count; row0 += tileRows) {
    const rowEnd = Math.min(count, row0 + tileRows)
    for (let k0 = from; k0 < to; k0 += tileInputs) {
      const kEnd = Math.min(to, k0 + tileInputs)
      for (let row = row0; row < rowEnd; row++) {
        const scale = scales[column + row] as number
        const inverse = scale === 0 ? 0 : 1 / scale
        let read = row * inputs + k0
        let write = (k0 - from) * outputs + column + row
        for (let k = k0; k < kEnd; k++) {
          out[write] = (rows[read] as number) * inverse + rounding - rounding
          read += 1
          write += outputs
        }
      }
    }
  }
}

/**
 * Steps of a block's scale to try, as the integer (from zero) that its largest weight falls on: 8 uses the whole range
 * -8 … 7, 7 is symmetric, above 8 the largest weight is cut so that the others are finer.
 */
const int4Steps = [8, 7, 8.6, 9.6]

/**
 * `count` rows [inputs] to nibbles [count, blocks, block / 2] (low first, zero point 8) and scales [count, blocks] at
 * `scales[scaleAt …]`. Of the steps, the one with the least squared error wins; its scale is the least-squares fit to
 * the integers chosen, Σwq / Σq². The last block may be short: its rest is zero.
 */
export function quantiseInt4(
  rows: Float32Array,
  count: number,
  inputs: number,
  block: number,
  nibbles: Uint8Array,
  scales: Float32Array,
  scaleAt: number,
): void {
  const blocks = Math.ceil(inputs / block)
  for (let row = 0; row < count; row++) {
    for (let b = 0; b < blocks; b++) {
      const start = row * inputs + b * block
      const length = Math.min(block, inputs - b * block)
      const index = row * blocks + b
      scales[scaleAt + index] = int4BlockFit(rows, start, length, nibbles, (index * block) / 2, block / 2)
    }
  }
}

/** Lifts what the largest step can give above zero, where cutting off the fraction rounds to the nearest. */
const aboveZero = 16.5

/** Quantises one block; returns its scale. */
function int4BlockFit(
  rows: Float32Array,
  start: number,
  length: number,
  nibbles: Uint8Array,
  nibbleAt: number,
  nibbleBytes: number,
): number {
  const largest = largestOf(rows, start, length)
  if (largest === 0) {
    nibbles.fill(0x88, nibbleAt, nibbleAt + nibbleBytes)
    return 0
  }
  const end = start + length
  let bestGain = -1
  let bestInverse = 0
  let bestScale = 0
  for (let step = 0; step < int4Steps.length; step++) {
    // Negative: the largest weight falls on -8 and not on 7, whatever its sign.
    const inverse = -(int4Steps[step] as number) / largest
    let wq = 0
    let qq = 0
    for (let i = start; i < end; i++) {
      const w = rows[i] as number
      const q = Math.max(-8, Math.min(7, ((w * inverse + aboveZero) | 0) - 16))
      wq += w * q
      qq += q * q
    }
    // The error is Σw² - (Σwq)² / Σq².
    const gain = (wq * wq) / qq
    if (gain > bestGain) {
      bestGain = gain
      bestInverse = inverse
      bestScale = wq / qq
    }
  }
  for (let at = 0; at < nibbleBytes; at++) {
    const low = int4Nibble(rows, start + 2 * at, end, bestInverse)
    const high = int4Nibble(rows, start + 2 * at + 1, end, bestInverse)
    nibbles[nibbleAt + at] = low | (high << 4)
  }
  return bestScale
}

function largestOf(rows: Float32Array, start: number, length: number): number {
  let largest = 0
  for (let i = start; i < start + length; i++) {
    const w = rows[i] as number
    if (Math.abs(w) > Math.abs(largest)) largest = w
  }
  return largest
}

function int4Nibble(rows: Float32Array, i: number, end: number, inverse: number): number {
  if (i >= end) return 8
  const q = (((rows[i] as number) * inverse + aboveZero) | 0) - 16
  return Math.max(-8, Math.min(7, q)) + 8
}
