import { MoeshError } from '../config/errors.ts'

/** Bits of an element, by the name that safetensors gives to a type. Sub-byte types are packed. */
export const safetensorsBits = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  F64: 64,
  I64: 64,
  U64: 64,
  C64: 64,
} as const
export type SafetensorsDtype = keyof typeof safetensorsBits

export function isSafetensorsDtype(name: string): name is SafetensorsDtype {
  return Object.hasOwn(safetensorsBits, name)
}

/** The types that weights are read from. */
export type WeightDtype = 'f32' | 'bf16' | 'f16'
const weightDtypes: Partial<Record<SafetensorsDtype, WeightDtype>> = { F32: 'f32', BF16: 'bf16', F16: 'f16' }

/** Throws MODEL_UNSUPPORTED for types that weights are not read from, naming the tensor. */
export function weightDtype(dtype: SafetensorsDtype, tensor: string, path: string): WeightDtype {
  const known = weightDtypes[dtype]
  if (known !== undefined) return known
  throw new MoeshError(
    'MODEL_UNSUPPORTED',
    `${path}: tensor ${tensor} has type ${dtype}; F32, BF16 and F16 weights are read`,
    'use the unquantised version of this checkpoint',
  )
}

/**
 * Converts `count` elements of little-endian `bytes` to f32 at `out[at …]`. `bytes` may lie at any offset of its
 * buffer as long as it is a multiple of the element's size.
 */
export function toFloats(bytes: Uint8Array, dtype: WeightDtype, count: number, out: Float32Array, at: number): void {
  switch (dtype) {
    case 'f32':
      out.set(new Float32Array(bytes.buffer, bytes.byteOffset, count), at)
      return
    case 'bf16':
      bf16ToFloats(
        new Uint16Array(bytes.buffer, bytes.byteOffset, count),
        new Uint32Array(out.buffer, out.byteOffset, out.length),
        at,
      )
      return
    case 'f16':
      halvesToFloats(new Uint16Array(bytes.buffer, bytes.byteOffset, count), out, at)
      return
  }
}

/** A bfloat16 is the upper half of a float. */
function bf16ToFloats(words: Uint16Array, bits: Uint32Array, at: number): void {
  const count = words.length
  for (let i = 0; i < count; i++) bits[at + i] = (words[i] as number) << 16
}

let halfTable: Float32Array | undefined

/** All 65536 halves in a table (256 KiB): ten times faster than arithmetic on each element. */
function halvesToFloats(words: Uint16Array, out: Float32Array, at: number): void {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, bits) => halfToFloat(bits))
  const table = halfTable
  const count = words.length
  for (let i = 0; i < count; i++) out[at + i] = table[words[i] as number] as number
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 0x1f
  const fraction = bits & 0x3ff
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}
