import assert from 'node:assert/strict'

/**
 * A synthetic byte-level vocabulary that both sides accept: the 256 bytes, then pairs of bytes, each with its merge, and
 * an end-of-text token as the last id. The benchmark sends token ids; texts work too, two bytes a token.
 */
export type Vocabulary = {
  /** By id. */
  tokens: string[]
  /** In order of priority: left and right half. */
  merges: [string, string][]
  endOfText: number
}

export const endOfTextToken = '<|endoftext|>'

export function makeVocabulary(size: number): Vocabulary {
  const bytes = byteAlphabet()
  const pairs = size - bytes.length - 1
  assert(pairs >= 0)
  assert(pairs <= bytes.length ** 2)
  const merges = Array.from({ length: pairs }, (_, index): [string, string] => {
    const left = bytes[Math.floor(index / bytes.length)] ?? ''
    const right = bytes[index % bytes.length] ?? ''
    return [left, right]
  })
  const tokens = [...bytes, ...merges.map(([left, right]) => left + right), endOfTextToken]
  return { tokens, merges, endOfText: size - 1 }
}

/** GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from U+0100 on. */
function byteAlphabet(): string[] {
  const isPrintable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff)
  let unprintable = 0
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(isPrintable(byte) ? byte : 0x100 + unprintable++),
  )
}

/** tokenizer.json as transformers writes it. */
export function tokenizerJson({ tokens, merges, endOfText }: Vocabulary): object {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      {
        id: endOfText,
        content: endOfTextToken,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  }
}
