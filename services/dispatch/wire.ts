import { MoeshError } from '../config/errors.ts'

/**
 * Protobuf's wire format, the part that the internal protocols use: fixed 32-bit numbers, floats and length-delimited
 * fields. Hand-written, because arrays and payloads must lie at aligned places and be read without a copy.
 */
const wireTypes = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const

/** Bytes of a tag, for the fields 1 … 15 that we use. */
export const tagBytes = 1
export const fixed32Bytes = tagBytes + 4
export const fixed64Bytes = tagBytes + 8

/** Writes fields to a buffer of exactly the right size. */
export class WireWriter {
  readonly buffer: Buffer
  at = 0

  constructor(buffer: Buffer) {
    this.buffer = buffer
  }

  fixed32(field: number, value: number): void {
    this.#tag(field, wireTypes.fixed32)
    this.at = this.buffer.writeUInt32LE(value, this.at)
  }

  /** Up to 2^53. */
  fixed64(field: number, value: number): void {
    this.#tag(field, wireTypes.fixed64)
    this.at = this.buffer.writeBigUInt64LE(BigInt(value), this.at)
  }

  float(field: number, value: number): void {
    this.#tag(field, wireTypes.fixed32)
    this.at = this.buffer.writeFloatLE(value, this.at)
  }

  /** A field's head; its length takes exactly `lengthBytes` bytes, padded. Returns where the content begins. */
  head(field: number, contentBytes: number, lengthBytes: number): number {
    this.#tag(field, wireTypes.bytes)
    let rest = contentBytes
    for (let i = 1; i < lengthBytes; i++) {
      this.buffer[this.at++] = (rest & 0x7f) | 0x80
      rest >>>= 7
    }
    if (rest > 0x7f) throw new MoeshError('INTERNAL', `${contentBytes} bytes do not fit in a length of ${lengthBytes}`)
    this.buffer[this.at++] = rest
    const start = this.at
    this.at += contentBytes
    return start
  }

  bytes(field: number, content: Uint8Array): void {
    const start = this.head(field, content.length, varintBytes(content.length))
    this.buffer.set(content, start)
  }

  #tag(field: number, type: number): void {
    this.buffer[this.at++] = (field << 3) | type
  }
}

function varintBytes(value: number): number {
  let bytes = 1
  for (let rest = value; rest > 0x7f; rest >>>= 7) bytes += 1
  return bytes
}

/** Bytes of a field with such a content. */
export function fieldBytes(contentBytes: number): number {
  return tagBytes + varintBytes(contentBytes) + contentBytes
}

/**
 * Reads a message field by field: `while (reader.next()) switch (reader.field) …`. Nothing is copied. Errors:
 * INVALID_ARGUMENT for bytes that are no message, and for a field with another type than the one asked for.
 */
export class WireReader {
  readonly buffer: Uint8Array
  readonly #view: DataView
  #at = 0
  #type = 0
  #start = 0
  #end = 0
  field = 0

  constructor(buffer: Uint8Array) {
    this.buffer = buffer
    this.#view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength)
  }

  next(): boolean {
    if (this.#at === this.buffer.length) return false
    const tag = this.#readVarint()
    this.field = tag >>> 3
    this.#type = tag & 7
    if (this.field === 0) throw invalid('field number 0')
    switch (this.#type) {
      case wireTypes.varint:
        this.#readVarint()
        return true
      case wireTypes.fixed64:
        this.#take(8)
        return true
      case wireTypes.fixed32:
        this.#take(4)
        return true
      case wireTypes.bytes:
        this.#take(this.#readVarint())
        return true
      default:
        throw invalid(`wire type ${this.#type} of field ${this.field}`)
    }
  }

  fixed32(): number {
    this.#expect(wireTypes.fixed32)
    return this.#view.getUint32(this.#start, true)
  }

  /** Errors: INVALID_ARGUMENT for more than 2^53. */
  fixed64(): number {
    this.#expect(wireTypes.fixed64)
    const value = Number(this.#view.getBigUint64(this.#start, true))
    if (!Number.isSafeInteger(value)) throw invalid(`field ${this.field} is larger than 2^53`)
    return value
  }

  float(): number {
    this.#expect(wireTypes.fixed32)
    return this.#view.getFloat32(this.#start, true)
  }

  bytes(): Uint8Array {
    this.#expect(wireTypes.bytes)
    return this.buffer.subarray(this.#start, this.#end)
  }

  string(bytesMax: number): string {
    const bytes = this.bytes()
    if (bytes.length > bytesMax) throw invalid(`field ${this.field} has ${bytes.length} bytes, at most ${bytesMax}`)
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
  }

  /** A packed field of 32-bit integers: a view if it is aligned, else a copy. */
  int32Array(): Int32Array {
    const bytes = this.#words()
    return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  }

  float32Array(): Float32Array {
    const bytes = this.#words()
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  }

  #words(): Uint8Array {
    const bytes = this.bytes()
    if (bytes.length % 4 !== 0) throw invalid(`field ${this.field} has ${bytes.length} bytes, no multiple of 4`)
    return bytes.byteOffset % 4 === 0 ? bytes : Uint8Array.from(bytes)
  }

  #expect(type: number): void {
    if (this.#type !== type) throw invalid(`field ${this.field} has the wire type ${this.#type} instead of ${type}`)
  }

  #take(bytes: number): void {
    this.#start = this.#at
    this.#end = this.#at + bytes
    if (this.#end > this.buffer.length) throw invalid(`field ${this.field} ends behind the message`)
    this.#at = this.#end
  }

  /** Up to 32 bits: nothing that we read is larger. */
  #readVarint(): number {
    let value = 0
    for (let i = 0; i < 5; i++) {
      const byte = this.buffer[this.#at++]
      if (byte === undefined) throw invalid('the message ends inside a number')
      value += (byte & 0x7f) * 2 ** (7 * i)
      if (byte < 0x80) {
        if (value > 0xffffffff) break
        return value
      }
    }
    throw invalid('a number has more than 32 bits')
  }
}

function invalid(what: string): MoeshError {
  return new MoeshError('INVALID_ARGUMENT', `no valid message: ${what}`)
}
