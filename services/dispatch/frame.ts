import assert from 'node:assert/strict'
import { endianness } from 'node:os'
import { MoeshError } from '../config/errors.ts'
import { decodeHello, type Hello, helloField } from './hello.ts'
import { hasScale, type OutputBuffer, type RowBuffer, type RowEncoding, rowBytes } from './rows.ts'
import type { ExpertCall } from './transport.ts'
import { fieldBytes, fixed32Bytes, tagBytes, WireReader, WireWriter } from './wire.ts'

// Payloads are little-endian and are read as they lie in memory.
assert(endianness() === 'LE')

/** Pairs of a frame; larger calls travel in several frames, which also lets the node begin before all has come. */
export const pairsMax = 1 << 16
/** A reply's payload is cut to about this size: large enough to amortise a trip, small enough to overlap. */
const replyBytesGoal = 4 * 1024 * 1024
/** No message of ours is longer; what is, is refused before it is read. */
export const frameBytesMax = 64 * 1024 * 1024
const codeBytesMax = 64
const messageBytesMax = 4096

/** Pairs that fit a frame of rows with so many values. */
export function pairsPerFrame(hidden: number): number {
  return Math.min(pairsMax, Math.max(64, Math.floor(replyBytesGoal / (hidden * 4))))
}

/** Rows for some experts, as received: views of the message. */
export type RequestFrame = {
  sequence: number
  layer: number
  experts: Int32Array
  counts: Int32Array
  rowIndices: Int32Array
  scales: Float32Array
  rows: number
  payload: Uint8Array
}

export type ReplyFrame =
  | { kind: 'done'; sequence: number; payload: Uint8Array; computeMs: number; waitMs: number }
  | { kind: 'error'; sequence: number; code: string; message: string }

/** What a received request must fit. */
export type FrameShape = {
  readonly hidden: number
  readonly encoding: RowEncoding
  /** Layer → number of experts. */
  readonly layers: ReadonlyMap<number, number>
}

const requestFields = {
  sequence: 1,
  experts: 2,
  counts: 3,
  rowIndices: 4,
  scales: 5,
  layer: 6,
  rows: 7,
  payload: 8,
  padding: 9,
} as const
const replyFields = { sequence: 1, payload: 2, computeMs: 3, waitMs: 4, code: 5, message: 6 } as const

/**
 * gRPC puts five bytes before a message. With these sizes of lengths every array begins at a multiple of four: the
 * first after 5 + 5 (sequence) + 6 bytes, the next ones four bytes after the end of the one before. Payloads begin at
 * multiples of eight, some after a field of padding: V8 copies to and from shared memory byte by byte, seven times
 * slower, between places that lie differently within their words.
 */
const grpcBytes = 5
const lengthBytes = { first: 5, next: 3, payload: 5 } as const
const padding = new Uint8Array(2)

/** Which of a call's rows travel, each once. Kept by the sender: it grows to the largest row index. */
export class RowSelection {
  #generation = 0
  #seen = new Int32Array(0)
  #place = new Int32Array(0)
  /** Rows in the order of travel; the first `count` are valid. */
  order = new Int32Array(0)
  count = 0

  select(rowIndices: Int32Array): void {
    let last = -1
    for (let i = 0; i < rowIndices.length; i++) last = Math.max(last, rowIndices[i] ?? 0)
    if (this.#seen.length <= last) {
      const size = 2 ** Math.ceil(Math.log2(last + 1))
      this.#seen = new Int32Array(size)
      this.#place = new Int32Array(size)
      this.#generation = 0
    }
    if (this.order.length < rowIndices.length) this.order = new Int32Array(rowIndices.length)
    // Ids of marks may be used up after two thousand million calls.
    if (this.#generation === 0x7fffffff) {
      this.#seen.fill(0)
      this.#generation = 0
    }
    this.#generation += 1
    this.count = 0
    for (let i = 0; i < rowIndices.length; i++) {
      const row = rowIndices[i] ?? 0
      if (this.#seen[row] === this.#generation) continue
      this.#seen[row] = this.#generation
      this.#place[row] = this.count
      this.order[this.count++] = row
    }
  }

  place(row: number): number {
    return this.#place[row] ?? 0
  }
}

export function encodeRequest(
  sequence: number,
  call: ExpertCall,
  encoding: RowEncoding,
  hidden: number,
  selection: RowSelection,
): Buffer {
  const { experts, counts, rowIndices, rows } = call
  selection.select(rowIndices)
  const size = rowBytes(encoding, hidden)
  const payloadBytes = selection.count * size
  const scaleCount = hasScale(encoding) ? selection.count : 0
  const unpaddedBytes =
    3 * fixed32Bytes +
    (tagBytes + lengthBytes.first + experts.length * 4) +
    2 * (tagBytes + lengthBytes.next) +
    (counts.length + rowIndices.length) * 4 +
    (scaleCount > 0 ? tagBytes + lengthBytes.next + scaleCount * 4 : 0) +
    (tagBytes + lengthBytes.payload)
  const isPadded = (grpcBytes + unpaddedBytes) % 8 !== 0
  const bytes = unpaddedBytes + (isPadded ? fieldBytes(padding.length) : 0) + payloadBytes
  assert(bytes <= frameBytesMax)
  // It begins where it will be when it is received, so that arrays are aligned while we write them, too.
  const buffer = Buffer.allocUnsafeSlow(grpcBytes + bytes).subarray(grpcBytes)
  const writer = new WireWriter(buffer)
  writer.fixed32(requestFields.sequence, sequence)
  words(writer, requestFields.experts, experts.length, lengthBytes.first).set(experts)
  words(writer, requestFields.counts, counts.length, lengthBytes.next).set(counts)
  const indices = words(writer, requestFields.rowIndices, rowIndices.length, lengthBytes.next)
  for (let i = 0; i < rowIndices.length; i++) indices[i] = selection.place(rowIndices[i] ?? 0)
  if (scaleCount > 0) {
    const at = writer.head(requestFields.scales, scaleCount * 4, lengthBytes.next)
    const scales = new Float32Array(buffer.buffer, buffer.byteOffset + at, scaleCount)
    for (let i = 0; i < scaleCount; i++) scales[i] = rows.scales[selection.order[i] ?? 0] ?? 0
  }
  writer.fixed32(requestFields.layer, call.layer)
  writer.fixed32(requestFields.rows, selection.count)
  if (isPadded) writer.bytes(requestFields.padding, padding)
  const at = writer.head(requestFields.payload, payloadBytes, lengthBytes.payload)
  copyRows(buffer, at, rows, size, selection)
  assert(writer.at === bytes)
  return buffer
}

function words(writer: WireWriter, field: number, count: number, length: number): Int32Array {
  const at = writer.head(field, count * 4, length)
  return new Int32Array(writer.buffer.buffer, writer.buffer.byteOffset + at, count)
}

/** Neighbours travel in one copy: in a prefill most rows are. */
function copyRows(buffer: Buffer, at: number, rows: RowBuffer, size: number, { order, count }: RowSelection): void {
  let to = at
  for (let i = 0; i < count; ) {
    const first = order[i] ?? 0
    let run = 1
    while (i + run < count && order[i + run] === first + run) run += 1
    buffer.set(rows.data.subarray(first * size, (first + run) * size), to)
    to += run * size
    i += run
  }
}

/** The reply that brings the first `values` of the outputs, around them where they lie: nothing is copied. */
export function encodeReply(
  sequence: number,
  { data }: OutputBuffer,
  values: number,
  computeMs: number,
  waitMs: number,
): Buffer {
  const headBytes = fixed32Bytes + tagBytes + lengthBytes.payload
  const payloadBytes = values * data.BYTES_PER_ELEMENT
  const bytes = headBytes + payloadBytes + 2 * fixed32Bytes
  const writer = new WireWriter(Buffer.from(data.buffer, data.byteOffset - headBytes, bytes))
  writer.fixed32(replyFields.sequence, sequence)
  writer.head(replyFields.payload, payloadBytes, lengthBytes.payload)
  writer.float(replyFields.computeMs, computeMs)
  writer.float(replyFields.waitMs, waitMs)
  assert(writer.at === bytes)
  return writer.buffer
}

export function encodeError(sequence: number, code: string, message: string): Buffer {
  const codeBytes = Buffer.from(code)
  const messageBytes = Buffer.from(message).subarray(0, messageBytesMax)
  const writer = new WireWriter(
    Buffer.alloc(fixed32Bytes + fieldBytes(codeBytes.length) + fieldBytes(messageBytes.length)),
  )
  writer.fixed32(replyFields.sequence, sequence)
  writer.bytes(replyFields.code, codeBytes)
  writer.bytes(replyFields.message, messageBytes)
  return writer.buffer
}

/** Errors: INVALID_ARGUMENT. What a request says is not checked yet: see `checkRequest`. */
export function decodeRequest(message: Uint8Array): { hello: Hello } | { frame: RequestFrame } {
  const reader = new WireReader(message)
  const frame: RequestFrame = {
    sequence: 0,
    layer: 0,
    experts: new Int32Array(0),
    counts: new Int32Array(0),
    rowIndices: new Int32Array(0),
    scales: new Float32Array(0),
    rows: 0,
    payload: new Uint8Array(0),
  }
  while (reader.next()) {
    switch (reader.field) {
      case requestFields.sequence:
        frame.sequence = reader.fixed32()
        break
      case requestFields.experts:
        frame.experts = reader.int32Array()
        break
      case requestFields.counts:
        frame.counts = reader.int32Array()
        break
      case requestFields.rowIndices:
        frame.rowIndices = reader.int32Array()
        break
      case requestFields.scales:
        frame.scales = reader.float32Array()
        break
      case requestFields.layer:
        frame.layer = reader.fixed32()
        break
      case requestFields.rows:
        frame.rows = reader.fixed32()
        break
      case requestFields.payload:
        frame.payload = reader.bytes()
        break
      case helloField:
        return { hello: decodeHello(reader.bytes()) }
    }
  }
  return { frame }
}

/** Refuses what a node could not compute safely. Errors: INVALID_ARGUMENT, with what is wrong. */
export function checkRequest(frame: RequestFrame, shape: FrameShape): void {
  const { layer, experts, counts, rowIndices, scales, rows, payload } = frame
  const expertCount = shape.layers.get(layer)
  if (expertCount === undefined) throw invalid(`layer ${layer} has no experts`)
  if (rowIndices.length > pairsMax) throw invalid(`${rowIndices.length} pairs, at most ${pairsMax}`)
  if (rows === 0 || rows > rowIndices.length) throw invalid(`${rows} rows for ${rowIndices.length} pairs`)
  if (experts.length !== counts.length) throw invalid(`${experts.length} experts with ${counts.length} counts`)
  let pairs = 0
  let before = -1
  for (let i = 0; i < experts.length; i++) {
    const expert = experts[i] ?? -1
    const count = counts[i] ?? 0
    if (expert <= before) throw invalid(`expert ${expert} after ${before}: ids must ascend`)
    if (count < 1) throw invalid(`expert ${expert} has ${count} rows`)
    before = expert
    pairs += count
  }
  if (before >= expertCount) throw invalid(`expert ${before} of ${expertCount} in layer ${layer}`)
  if (pairs !== rowIndices.length) throw invalid(`counts add up to ${pairs} pairs, there are ${rowIndices.length}`)
  for (let i = 0; i < rowIndices.length; i++) {
    const row = rowIndices[i] ?? -1
    if (row < 0 || row >= rows) throw invalid(`row index ${row} of ${rows} rows`)
  }
  const bytes = rows * rowBytes(shape.encoding, shape.hidden)
  if (payload.length !== bytes) throw invalid(`a payload of ${payload.length} bytes, ${rows} rows have ${bytes}`)
  const scaleCount = hasScale(shape.encoding) ? rows : 0
  if (scales.length !== scaleCount) throw invalid(`${scales.length} scales for ${scaleCount} scaled rows`)
}

/** Errors: INVALID_ARGUMENT. */
export function decodeReply(message: Uint8Array): { hello: Hello } | { frame: ReplyFrame } {
  const reader = new WireReader(message)
  let sequence = 0
  let payload: Uint8Array = new Uint8Array(0)
  let computeMs = 0
  let waitMs = 0
  let code = ''
  let text = ''
  while (reader.next()) {
    switch (reader.field) {
      case replyFields.sequence:
        sequence = reader.fixed32()
        break
      case replyFields.payload:
        payload = reader.bytes()
        break
      case replyFields.computeMs:
        computeMs = reader.float()
        break
      case replyFields.waitMs:
        waitMs = reader.float()
        break
      case replyFields.code:
        code = reader.string(codeBytesMax)
        break
      case replyFields.message:
        text = reader.string(messageBytesMax)
        break
      case helloField:
        return { hello: decodeHello(reader.bytes()) }
    }
  }
  if (code !== '') return { frame: { kind: 'error', sequence, code, message: text } }
  return { frame: { kind: 'done', sequence, payload, computeMs, waitMs } }
}

function invalid(what: string): MoeshError {
  return new MoeshError('INVALID_ARGUMENT', `dispatch frame: ${what}`)
}
