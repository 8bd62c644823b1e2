/** Builds safetensors files for tests: the header is any JSON text, right or wrong. */
export function safetensors(header: unknown, data: Uint8Array, headerLength?: bigint): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(headerLength ?? BigInt(json.length))
  return Buffer.concat([length, json, data])
}

export type TensorInput = { dtype: 'F32' | 'BF16' | 'F16'; shape: number[]; data: Uint8Array }

/** A whole, valid file; tensors in the order given. */
export function safetensorsFile(tensors: Record<string, TensorInput>): Buffer {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  let offset = 0
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + data.length] }
    offset += data.length
  }
  return safetensors(header, Buffer.concat(Object.values(tensors).map(({ data }) => data)))
}

export function floatBytes(values: ArrayLike<number>): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer)
}

/** Upper halves of floats; values must be exact in bfloat16. */
export function bfloatBytes(values: ArrayLike<number>): Uint8Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer)
  return new Uint8Array(Uint16Array.from(bits, (word) => word >>> 16).buffer)
}
