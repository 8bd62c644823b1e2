import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { isSafetensorsDtype, type SafetensorsDtype, safetensorsBits } from './dtype.ts'

/**
 * The header of a safetensors file: 8 bytes little-endian length, then that much JSON, then the data. Everything in it
 * is checked before a byte of data is used: files come from strangers, and a wrong offset would silently give wrong
 * weights.
 */

/** The format's own limit. */
export const headerBytesMax = 100_000_000
/** A tensor has at most this many dimensions here; published weights have up to 5. */
const dimensionsMax = 16

export type SafetensorsEntry = {
  name: string
  dtype: SafetensorsDtype
  shape: number[]
  /** From the beginning of the file. */
  offset: number
  bytes: number
}

export type SafetensorsHeader = {
  /** In the order of their offsets. */
  entries: SafetensorsEntry[]
  metadata: Record<string, string>
}

const size = z.int().nonnegative()
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(size).max(dimensionsMax),
  data_offsets: z.tuple([size, size]),
})
const metadataSchema = z.record(z.string(), z.string())

/** Length of the JSON, from the file's first 8 bytes. Throws CHECKPOINT_INVALID. */
export function headerLength(first: Uint8Array, fileBytes: number, path: string): number {
  if (fileBytes < 8 || first.length < 8) {
    throw invalid(path, `has ${fileBytes} bytes, too few for a safetensors file`, 'download it again')
  }
  if (Buffer.from(first).toString('latin1').startsWith('version ')) {
    throw invalid(path, 'is a Git LFS pointer and not the weights', 'fetch the file itself (git lfs pull)')
  }
  const length = Buffer.from(first).readBigUInt64LE(0)
  if (length > BigInt(headerBytesMax)) {
    throw invalid(path, `says that its header has ${length} bytes; the format allows ${headerBytesMax}`)
  }
  if (8n + length > BigInt(fileBytes)) {
    throw invalid(
      path,
      `ends within its header: ${fileBytes} bytes, the header needs ${8n + length}`,
      'download it again',
    )
  }
  if (length < 2n) throw invalid(path, `says that its header has ${length} bytes, too few for JSON`)
  return Number(length)
}

/** Reads and checks the JSON of a header. Throws CHECKPOINT_INVALID, naming the file and the tensor. */
export function parseHeader(json: Uint8Array, fileBytes: number, path: string): SafetensorsHeader {
  const text = decodeUtf8(json, path)
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new MoeshError('CHECKPOINT_INVALID', `${path}: the header is not valid JSON`, 'download it again', { cause })
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw invalid(path, 'has a header that is not a JSON object')
  }
  const repeated = repeatedKey(text)
  if (repeated !== null) throw invalid(path, `lists tensor ${repeated} twice`)
  const dataStart = 8 + json.length
  let metadata: Record<string, string> = {}
  const entries: SafetensorsEntry[] = []
  for (const [name, raw] of Object.entries(value)) {
    if (name === '__metadata__') metadata = readMetadata(raw, path)
    else entries.push(readEntry(name, raw, dataStart, path))
  }
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  checkPlaces(entries, dataStart, fileBytes, path)
  return { entries, metadata }
}

function decodeUtf8(json: Uint8Array, path: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(json)
  } catch (cause) {
    throw new MoeshError('CHECKPOINT_INVALID', `${path}: the header is not UTF-8`, 'download it again', { cause })
  }
}

function readMetadata(raw: unknown, path: string): Record<string, string> {
  const read = metadataSchema.safeParse(raw)
  if (!read.success) throw invalid(path, 'has a header whose __metadata__ is not a map of strings')
  return read.data
}

function readEntry(name: string, raw: unknown, dataStart: number, path: string): SafetensorsEntry {
  const read = entrySchema.safeParse(raw)
  if (!read.success) {
    const [issue] = read.error.issues
    throw invalid(path, `tensor ${name}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'not as expected'}`)
  }
  const { dtype, shape, data_offsets: offsets } = read.data
  const [start, end] = offsets
  if (!isSafetensorsDtype(dtype)) throw invalid(path, `tensor ${name} has the unknown type ${dtype}`)
  if (end < start) throw invalid(path, `tensor ${name} ends (${end}) before it begins (${start})`)
  const bits = BigInt(safetensorsBits[dtype]) * shape.reduce((product, axis) => product * BigInt(axis), 1n)
  if (bits !== 8n * BigInt(end - start)) {
    throw invalid(
      path,
      `tensor ${name}: ${dtype} [${shape.join(', ')}] takes ${bits / 8n} bytes, its offsets say ${end - start}`,
    )
  }
  return { name, dtype, shape, offset: dataStart + start, bytes: end - start }
}

/** The data must be covered exactly: the format knows neither overlaps nor holes. */
function checkPlaces(entries: readonly SafetensorsEntry[], dataStart: number, fileBytes: number, path: string): void {
  let end = dataStart
  let before = 'the header'
  for (const { name, offset, bytes } of entries) {
    if (offset + bytes > fileBytes) {
      throw invalid(
        path,
        `tensor ${name} ends at byte ${offset + bytes}, the file has ${fileBytes}`,
        'the file is truncated: download it again',
      )
    }
    if (offset < end) throw invalid(path, `tensor ${name} overlaps ${before}`)
    if (offset > end)
      throw invalid(path, `has ${offset - end} bytes between ${before} and tensor ${name} that belong to nothing`)
    end = offset + bytes
    before = `tensor ${name}`
  }
  if (end !== fileBytes)
    throw invalid(path, `has ${fileBytes - end} bytes behind its last tensor that belong to nothing`)
}

/**
 * The first key that an object's JSON text has twice at its top level, or null. `JSON.parse` keeps the last one
 * silently, and another reader may take the first. `text` is valid JSON.
 */
function repeatedKey(text: string): string | null {
  const seen = new Set<string>()
  let depth = 0
  let isKey = false
  for (let at = 0; at < text.length; at++) {
    const char = text[at]
    if (char === '"') {
      const end = stringEnd(text, at)
      if (depth === 1 && isKey) {
        const key: unknown = JSON.parse(text.slice(at, end + 1))
        if (typeof key === 'string') {
          if (seen.has(key)) return key
          seen.add(key)
        }
      }
      at = end
    } else if (char === '{' || char === '[') {
      depth += 1
      isKey = depth === 1
    } else if (char === '}' || char === ']') depth -= 1
    else if (depth === 1 && char === ',') isKey = true
    else if (depth === 1 && char === ':') isKey = false
  }
  return null
}

/** Index of the quote that closes the string which opens at `start`. */
function stringEnd(text: string, start: number): number {
  let at = start + 1
  while (at < text.length && text[at] !== '"') at += text[at] === '\\' ? 2 : 1
  return at
}

function invalid(path: string, what: string, hint = ''): MoeshError {
  return new MoeshError('CHECKPOINT_INVALID', `${path} ${what}`.replace(`${path} tensor`, `${path}: tensor`), hint)
}
