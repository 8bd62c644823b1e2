import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'

/**
 * What a token stands for, as bytes: text is the concatenation of them, read as UTF-8. Two ways to write bytes as
 * vocabulary entries are in use:
 * - byte level: each byte is one printable character (`Ġ` is a space), so an entry may begin or end within a character;
 * - sentencepiece: entries are text with `▁` for a space, and `<0xNN>` stands for a byte that no entry has.
 */
export type ByteCoding = {
  kind: 'byte-level' | 'sentencepiece'
  /** The whole text's first space was added in front and is not part of it. */
  stripsFirstSpace: boolean
}

const decoderSchema = z.looseObject({ type: z.string() })
type Decoder = z.infer<typeof decoderSchema>

/** From the `decoder` of tokenizer.json. Throws MODEL_UNSUPPORTED for other ways, by name. */
export function byteCodingOf(decoder: unknown, path: string): ByteCoding {
  const steps = stepsOf(decoder)
  const names = steps.map(({ type }) => type)
  if (names.includes('ByteLevel')) return { kind: 'byte-level', stripsFirstSpace: false }
  const isSentencepiece =
    names.includes('ByteFallback') || names.includes('Metaspace') || steps.some((step) => replacesMetaspace(step))
  if (!isSentencepiece) {
    throw new MoeshError(
      'MODEL_UNSUPPORTED',
      `${path}: decoder ${names.join(', ') || 'none'} is not supported`,
      'supported are ByteLevel, ByteFallback and Metaspace',
    )
  }
  const stripsFirstSpace = steps.some(
    (step) =>
      (step.type === 'Strip' && step.content === ' ' && Number(step.start) > 0) ||
      (step.type === 'Metaspace' && step.prepend_scheme !== 'never' && step.add_prefix_space !== false),
  )
  return { kind: 'sentencepiece', stripsFirstSpace }
}

function stepsOf(decoder: unknown): Decoder[] {
  const read = decoderSchema.safeParse(decoder)
  if (!read.success) return []
  const { type, decoders } = read.data
  return type === 'Sequence' && Array.isArray(decoders) ? decoders.flatMap(stepsOf) : [read.data]
}

function replacesMetaspace(step: Decoder): boolean {
  const pattern = z.object({ String: z.literal('▁') }).safeParse(step.pattern)
  return step.type === 'Replace' && pattern.success && step.content === ' '
}

/** Bytes of a vocabulary entry (not of an added token, whose text is its own). */
export function entryBytes(entry: string, coding: ByteCoding): Uint8Array {
  if (coding.kind === 'sentencepiece') {
    const [, hex] = /^<0x([0-9A-Fa-f]{2})>$/.exec(entry) ?? []
    return hex === undefined ? Buffer.from(entry.replaceAll('▁', ' '), 'utf8') : Uint8Array.of(Number.parseInt(hex, 16))
  }
  const bytes: number[] = []
  for (const char of entry) {
    const byte = byteOfChar.get(char)
    // A character outside the alphabet stands for itself.
    if (byte === undefined) bytes.push(...Buffer.from(char, 'utf8'))
    else bytes.push(byte)
  }
  return Uint8Array.from(bytes)
}

/**
 * The byte-level alphabet: printable Latin-1 characters stand for themselves, the other bytes for the characters from
 * U+0100 on, in order.
 */
const byteOfChar: ReadonlyMap<string, number> = (() => {
  const isPrintable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad)
  const map = new Map<string, number>()
  let shifted = 0
  for (let byte = 0; byte < 256; byte++) {
    map.set(String.fromCodePoint(isPrintable(byte) ? byte : 0x100 + shifted++), byte)
  }
  return map
})()
