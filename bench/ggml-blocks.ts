import assert from 'node:assert/strict'

/**
 * The peer's block formats: 32 consecutive inputs of a weight row share a half-precision scale.
 *
 * | format | block | weight |
 * |---|---|---|
 * | Q8_0 | f16 scale, 32 × i8: 34 bytes | q * scale |
 * | Q4_0 | f16 scale, 16 bytes: 18 bytes; byte j holds element j in its low nibble, element j + 16 in its high one | (q - 8) * scale |
 */
export type GgmlFormat = 'F32' | 'Q8_0' | 'Q4_0'

const blockElements = 32

export const ggmlFormats: Record<GgmlFormat, { id: number; blockElements: number; blockBytes: number }> = {
  F32: { id: 0, blockElements: 1, blockBytes: 4 },
  Q4_0: { id: 2, blockElements, blockBytes: 18 },
  Q8_0: { id: 8, blockElements, blockBytes: 34 },
}

export function ggmlBytes(format: GgmlFormat, elements: number): number {
  const { blockElements: size, blockBytes } = ggmlFormats[format]
  assert(elements % size === 0)
  return (elements / size) * blockBytes
}

/** Converts all of `values` into `out`, which has exactly `ggmlBytes` of room. */
export function convertToGgml(format: GgmlFormat, values: Float32Array, out: Uint8Array): void {
  assert(out.length === ggmlBytes(format, values.length))
  switch (format) {
    case 'F32':
      out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
      return
    case 'Q8_0':
      convertToQ8(values, out)
      return
    case 'Q4_0':
      convertToQ4(values, out)
      return
  }
}

function convertToQ8(values: Float32Array, out: Uint8Array): void {
  const { blockBytes } = ggmlFormats.Q8_0
  for (let block = 0, at = 0; block < values.length; block += blockElements, at += blockBytes) {
    let largest = 0
    for (let i = 0; i < blockElements; i++) largest = Math.max(largest, Math.abs(values[block + i] as number))
    const scale = largest / 127
    const inverse = scale === 0 ? 0 : 1 / scale
    writeHalf(out, at, scale)
    // Truncation of what is positive rounds half up, several times faster than Math.round.
    for (let i = 0; i < blockElements; i++) {
      out[at + 2 + i] = (((values[block + i] as number) * inverse + 128.5) | 0) - 128
    }
  }
}

/** The value of the largest magnitude becomes -8, the end of the range that has no counterpart. */
function convertToQ4(values: Float32Array, out: Uint8Array): void {
  const { blockBytes } = ggmlFormats.Q4_0
  const half = blockElements / 2
  for (let block = 0, at = 0; block < values.length; block += blockElements, at += blockBytes) {
    let extreme = 0
    for (let i = 0; i < blockElements; i++) {
      const value = values[block + i] as number
      if (Math.abs(value) > Math.abs(extreme)) extreme = value
    }
    const scale = extreme / -8
    const inverse = scale === 0 ? 0 : 1 / scale
    writeHalf(out, at, scale)
    for (let i = 0; i < half; i++) {
      const low = Math.min(15, Math.floor((values[block + i] as number) * inverse + 8.5))
      const high = Math.min(15, Math.floor((values[block + half + i] as number) * inverse + 8.5))
      out[at + 2 + i] = low | (high << 4)
    }
  }
}

const float = new Float32Array(1)
const floatBits = new Uint32Array(float.buffer)

function writeHalf(out: Uint8Array, at: number, value: number): void {
  const half = toHalf(value)
  out[at] = half & 0xff
  out[at + 1] = half >>> 8
}

/** Bits of the nearest half-precision number, ties to even. Scales are finite and within its range. */
export function toHalf(value: number): number {
  float[0] = value
  const bits = floatBits[0] as number
  const sign = (bits >>> 16) & 0x8000
  const magnitude = Math.abs(value)
  assert(magnitude < 65520)
  // Below the smallest normal number halves are multiples of 2^-24.
  if (magnitude < 2 ** -14) return sign | roundToEven(magnitude * 2 ** 24)
  const exponent = ((bits >>> 23) & 0xff) - 127
  // A fraction that rounds up to 1024 carries into the exponent, as it should.
  return sign | (((exponent + 15) << 10) + roundToEven((magnitude / 2 ** exponent - 1) * 1024))
}

function roundToEven(value: number): number {
  const floor = Math.floor(value)
  const rest = value - floor
  if (rest !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}
