import { MoeshError } from '../config/errors.ts'
import { fieldBytes, fixed64Bytes, WireReader, WireWriter } from './wire.ts'

/** The messages of `proto/moesh/internal/v1/shards.proto`. Decoders throw INVALID_ARGUMENT. */

export const manifestPath = '/moesh.internal.v1.ShardService/GetManifest'
export const fetchPath = '/moesh.internal.v1.ShardService/Fetch'

/** A manifest of 128 layers with 512 experts has about 15 MB. */
export const manifestBytesMax = 128 * 1024 * 1024
/** Large enough that a chunk's overhead does not matter, small enough to share a connection. */
export const chunkBytes = 256 * 1024

const digestPattern = /^[0-9a-f]{64}$/

/** `modelDigest` null: any. */
export type ManifestRequest = { modelDigest: string | null }
export type FetchRequest = { sha256: string; offset: number }

export function encodeManifestRequest({ modelDigest }: ManifestRequest): Buffer {
  return modelDigest === null ? Buffer.alloc(0) : single(Buffer.from(modelDigest))
}

export function decodeManifestRequest(message: Uint8Array): ManifestRequest {
  const reader = new WireReader(message)
  let modelDigest = ''
  while (reader.next()) if (reader.field === 1) modelDigest = reader.string(64)
  return { modelDigest: modelDigest === '' ? null : digest(modelDigest) }
}

export function encodeFetchRequest({ sha256, offset }: FetchRequest): Buffer {
  const content = Buffer.from(sha256)
  const writer = new WireWriter(Buffer.alloc(fieldBytes(content.length) + fixed64Bytes))
  writer.bytes(1, content)
  writer.fixed64(2, offset)
  return writer.buffer
}

export function decodeFetchRequest(message: Uint8Array): FetchRequest {
  const reader = new WireReader(message)
  let sha256 = ''
  let offset = 0
  while (reader.next()) {
    if (reader.field === 1) sha256 = reader.string(64)
    else if (reader.field === 2) offset = reader.fixed64()
  }
  return { sha256: digest(sha256), offset }
}

/** Both answers are one field of bytes. */
export function encodeContent(content: Uint8Array): Buffer {
  return single(content)
}

/** A view of the message. */
export function decodeContent(message: Uint8Array): Uint8Array {
  const reader = new WireReader(message)
  let content: Uint8Array = new Uint8Array(0)
  while (reader.next()) if (reader.field === 1) content = reader.bytes()
  return content
}

function single(content: Uint8Array): Buffer {
  const writer = new WireWriter(Buffer.allocUnsafe(fieldBytes(content.length)))
  writer.bytes(1, content)
  return writer.buffer
}

function digest(text: string): string {
  if (!digestPattern.test(text)) throw new MoeshError('INVALID_ARGUMENT', `"${text}" is no SHA-256 in hex`)
  return text
}
