import { closeSync, openSync, renameSync, writeSync } from 'node:fs'
import { type GgmlFormat, ggmlBytes, ggmlFormats } from './ggml-blocks.ts'

/**
 * A writer of GGUF, version 3: magic, counts, key-value pairs, tensor infos, then the tensors, each aligned to 32 bytes.
 * All little-endian; a text is its length in eight bytes and UTF-8. A tensor's sizes are written innermost first.
 */

export type GgufValue =
  | { kind: 'u32' | 'i32' | 'f32'; value: number }
  | { kind: 'bool'; value: boolean }
  | { kind: 'text'; value: string }
  | { kind: 'texts'; value: readonly string[] }
  | { kind: 'i32s'; value: readonly number[] }

export type GgufTensor = {
  name: string
  format: GgmlFormat
  /** Outermost first, as everywhere else here. */
  shape: readonly number[]
  /** Calls `write` with the tensor's bytes, piece by piece. */
  produce(write: (bytes: Uint8Array) => void): void
}

const valueTypes = { u32: 4, i32: 5, f32: 6, bool: 7, text: 8, array: 9 } as const
const alignment = 32

/** The file appears under its name once it is complete. */
export function writeGguf(
  path: string,
  metadata: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
  onProgress: (writtenBytes: number, totalBytes: number) => void = () => {},
): void {
  const partial = `${path}.partial`
  const fd = openSync(partial, 'w')
  try {
    const sizes = tensors.map(({ format, shape }) => ggmlBytes(format, elementsOf(shape)))
    const totalBytes = sizes.reduce((sum, size) => sum + align(size), 0)
    writeAll(fd, headerOf(metadata, tensors, sizes))
    let done = 0
    for (const [index, tensor] of tensors.entries()) {
      let written = 0
      tensor.produce((bytes) => {
        writeAll(fd, bytes)
        written += bytes.length
        onProgress(done + written, totalBytes)
      })
      const size = sizes[index] ?? 0
      if (written !== size) throw new Error(`${tensor.name} has ${size} bytes, and ${written} were written`)
      writeAll(fd, new Uint8Array(align(size) - size))
      done += align(size)
    }
  } finally {
    closeSync(fd)
  }
  renameSync(partial, path)
}

function headerOf(
  metadata: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
  sizes: readonly number[],
): Buffer {
  const entries = Object.entries(metadata)
  const pieces = [Buffer.from('GGUF', 'latin1'), u32(3), u64(tensors.length), u64(entries.length)]
  for (const [key, value] of entries) pieces.push(text(key), ...encodeValue(value))
  let offset = 0
  for (const [index, { name, format, shape }] of tensors.entries()) {
    pieces.push(text(name), u32(shape.length), ...shape.toReversed().map(u64), u32(ggmlFormats[format].id), u64(offset))
    offset += align(sizes[index] ?? 0)
  }
  const header = Buffer.concat(pieces)
  return Buffer.concat([header, Buffer.alloc(align(header.length) - header.length)])
}

function encodeValue(entry: GgufValue): Buffer[] {
  switch (entry.kind) {
    case 'u32':
      return [u32(valueTypes.u32), u32(entry.value)]
    case 'i32':
      return [u32(valueTypes.i32), i32(entry.value)]
    case 'f32':
      return [u32(valueTypes.f32), f32(entry.value)]
    case 'bool':
      return [u32(valueTypes.bool), Buffer.from([entry.value ? 1 : 0])]
    case 'text':
      return [u32(valueTypes.text), text(entry.value)]
    case 'texts':
      return [u32(valueTypes.array), u32(valueTypes.text), u64(entry.value.length), ...entry.value.map(text)]
    case 'i32s':
      return [u32(valueTypes.array), u32(valueTypes.i32), u64(entry.value.length), ...entry.value.map(i32)]
  }
}

function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, axis) => product * axis, 1)
}

function align(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function i32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32LE(value)
  return bytes
}

function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeFloatLE(value)
  return bytes
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, 'utf8')
  return Buffer.concat([u64(bytes.length), bytes])
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done)
}
