import { join } from 'node:path'
import { Tokenizer } from '@huggingface/tokenizers'
import { z } from 'zod'
import { readJsonFile } from '../checkpoint/json-file.ts'
import { MoeshError } from '../config/errors.ts'
import { byteOffsets } from './byte-offsets.ts'
import { type ChatInput, type ChatMessage, ChatTemplate } from './chat-template.ts'
import { createTextStream, type TextStream, type TextStreamOptions } from './text-stream.ts'
import { type ByteCoding, byteCodingOf, entryBytes } from './token-bytes.ts'

/** Characters of a text; the longest contexts are about a tenth of it. */
const textCharactersMax = 16 * 1024 * 1024

/** What a pack's manifest says of its tokenizer. */
export type TokenizerSource = {
  tokenizer: { tokenizerJson: string; tokenizerConfigJson: string | null } | null
  chatTemplate: string | null
}

const addedToken = z.looseObject({
  id: z.int().nonnegative(),
  content: z.string(),
  special: z.boolean().default(false),
})
const tokenizerSchema = z.looseObject({
  model: z.looseObject({}),
  added_tokens: z.array(addedToken).default([]),
  normalizer: z.unknown().default(null),
  pre_tokenizer: z.unknown().default(null),
  post_processor: z.unknown().default(null),
  decoder: z.unknown().default(null),
})
const specialToken = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish()
const configSchema = z.looseObject({
  bos_token: specialToken,
  eos_token: specialToken,
  unk_token: specialToken,
  pad_token: specialToken,
  sep_token: specialToken,
  cls_token: specialToken,
  mask_token: specialToken,
})

/** null where the pack has no tokenizer: its model takes token ids only. Throws PACK_INVALID or MODEL_UNSUPPORTED. */
export function loadTokenizer(packDir: string, { tokenizer, chatTemplate }: TokenizerSource): TextTokenizer | null {
  if (tokenizer === null) return null
  const path = join(packDir, tokenizer.tokenizerJson)
  const json = readJsonFile(path, tokenizerSchema, 'PACK_INVALID')
  if (json === undefined) throw new MoeshError('PACK_INVALID', `${path} does not exist`, 'pack the checkpoint again')
  const configName = tokenizer.tokenizerConfigJson
  const config =
    (configName === null ? undefined : readJsonFile(join(packDir, configName), configSchema, 'PACK_INVALID')) ?? {}
  let library: Tokenizer
  try {
    library = new Tokenizer(json, config)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new MoeshError('MODEL_UNSUPPORTED', `${path}: ${reason}`, 'send token ids instead of text', { cause })
  }
  const template = chatTemplate === null ? null : new ChatTemplate(chatTemplate, specialTexts(config))
  return new TextTokenizer(library, json.added_tokens, byteCodingOf(json.decoder, path), template)
}

export class TextTokenizer {
  /** One above the highest id. */
  readonly vocabularySize: number
  /** For streams: the first space of a whole text is none of its own. */
  readonly stripsFirstSpace: boolean
  readonly #library: Tokenizer
  readonly #added: ReadonlyMap<number, { content: string; special: boolean }>
  readonly #coding: ByteCoding
  readonly #template: ChatTemplate | null
  /** By id, filled on demand: detokenizing looks a token up once. */
  readonly #bytes = new Map<number, Uint8Array>()

  constructor(
    library: Tokenizer,
    added: readonly { id: number; content: string; special: boolean }[],
    coding: ByteCoding,
    template: ChatTemplate | null,
  ) {
    this.#library = library
    this.#added = new Map(added.map((token) => [token.id, token]))
    this.#coding = coding
    this.#template = template
    this.stripsFirstSpace = coding.stripsFirstSpace
    this.vocabularySize = library.model?.vocab.length ?? 0
  }

  get hasChatTemplate(): boolean {
    return this.#template !== null
  }

  /** `special`: with the tokens that the tokenizer puts around a text (begin of text). Throws INVALID_ARGUMENT. */
  encode(text: string, { special }: { special: boolean }): number[] {
    if (text.length > textCharactersMax) {
      throw new MoeshError(
        'INVALID_ARGUMENT',
        `the text has ${text.length} characters, at most ${textCharactersMax} are read`,
      )
    }
    if (text === '' && !special) return []
    // Where no entry fits and there is none for "unknown", the library says undefined; such text is left out.
    const ids: (number | undefined)[] = this.#library.encode(text, { add_special_tokens: special }).ids
    return ids.filter((id) => id !== undefined)
  }

  /** `byteOffsets[i]`: the byte of the UTF-8 text at which token i starts. */
  encodeWithOffsets(text: string, { special }: { special: boolean }): { ids: number[]; byteOffsets: number[] } {
    const plain = this.encode(text, { special: false })
    const ids = special ? this.encode(text, { special }) : plain
    const first = startWithin(ids, plain)
    const offsets = byteOffsets(
      text,
      plain.map((id) => this.tokenBytes(id) ?? new Uint8Array()),
    )
    const end = Buffer.byteLength(text)
    return {
      ids,
      // Tokens around the text have no place in it: they stand at its ends.
      byteOffsets: ids.map((_, index) => (index < first ? 0 : (offsets[index - first] ?? end))),
    }
  }

  /** The text of a whole sequence. */
  decode(ids: readonly number[], { skipSpecial }: { skipSpecial: boolean }): string {
    const stream = this.createTextStream({ skipSpecial, isStart: true })
    return ids.map((id) => stream.push(id)).join('') + stream.flush()
  }

  /** For text that grows token by token. */
  createTextStream(options: TextStreamOptions): TextStream {
    return createTextStream(this, options)
  }

  isSpecial(id: number): boolean {
    return this.#added.get(id)?.special ?? false
  }

  /** What a token stands for; it may begin or end within a character. null: no such token. */
  tokenBytes(id: number): Uint8Array | null {
    const known = this.#bytes.get(id)
    if (known) return known
    const added = this.#added.get(id)
    const entry = added?.content ?? this.#library.id_to_token(id)
    if (entry === undefined) return null
    const bytes = added ? Buffer.from(entry, 'utf8') : entryBytes(entry, this.#coding)
    this.#bytes.set(id, bytes)
    return bytes
  }

  /** The id of a token's exact text, as the vocabulary or the added tokens have it. */
  tokenId(token: string): number | null {
    return this.#library.token_to_id(token) ?? null
  }

  /**
   * The prompt as text, to be encoded without special tokens (the template writes them itself). Throws
   * MODEL_UNSUPPORTED where the model has no template, INVALID_ARGUMENT for what it refuses.
   */
  renderChat(
    messages: readonly ChatMessage[],
    tools: readonly unknown[] | null = null,
    kwargs: ChatInput['kwargs'] = {},
    continueFinal = false,
  ): string {
    if (this.#template === null) {
      throw new MoeshError('MODEL_UNSUPPORTED', 'this model has no chat template', 'send the prompt as text')
    }
    return this.#template.render({ messages, tools, kwargs, continueFinal })
  }
}

/** Where `inner` stands in `outer`. */
function startWithin(outer: readonly number[], inner: readonly number[]): number {
  for (let start = 0; start + inner.length <= outer.length; start++) {
    if (inner.every((id, index) => outer[start + index] === id)) return start
  }
  return 0
}

/** `bos_token` and the like, for templates. */
function specialTexts(config: z.infer<typeof configSchema>): Record<string, string> {
  const texts: Record<string, string> = {}
  for (const name of [
    'bos_token',
    'eos_token',
    'unk_token',
    'pad_token',
    'sep_token',
    'cls_token',
    'mask_token',
  ] as const) {
    const token = config[name]
    if (token != null) texts[name] = typeof token === 'string' ? token : token.content
  }
  return texts
}
