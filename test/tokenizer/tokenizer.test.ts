import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { findTokenizerFiles } from '../../services/checkpoint/tokenizer-files.ts'
import { loadTokenizer, type TextTokenizer } from '../../services/tokenizer/tokenizer.ts'

function open(directory: string): TextTokenizer {
  const { tokenizerJson, tokenizerConfigJson, chatTemplate } = findTokenizerFiles(directory)
  const tokenizer = loadTokenizer(directory, {
    tokenizer: tokenizerJson === null ? null : { tokenizerJson, tokenizerConfigJson },
    chatTemplate,
  })
  if (tokenizer === null) throw new Error(`${directory} has no tokenizer`)
  return tokenizer
}

const golden = open('test/goldens/llama')
const demo = open('models/tales-moe')

let directory = ''
let sentencepiece: TextTokenizer
/** Entries are text with ▁ for a space; bytes without an entry are written `<0xNN>`. */
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'moesh-tokenizer-'))
  const entries = [
    '<unk>',
    '<s>',
    '</s>',
    ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
  ]
  entries.push('▁', 'h', 'i', 'hi', '▁hi')
  const model = {
    type: 'BPE',
    unk_token: '<unk>',
    byte_fallback: true,
    fuse_unk: true,
    vocab: Object.fromEntries(entries.map((entry, id) => [entry, id])),
    merges: ['h i', '▁ hi'],
  }
  const special = (content: string, id: number) => ({ id, content, special: true })
  const json = {
    added_tokens: [special('<unk>', 0), special('<s>', 1), special('</s>', 2)],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model,
  }
  writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(json))
  sentencepiece = open(directory)
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const goldenSchema = z.object({ prompts: z.array(z.object({ ids: z.array(z.int()), text: z.string().optional() })) })
const texts = readdirSync('test/goldens', { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .flatMap(({ name }) => {
    const { prompts } = goldenSchema.parse(JSON.parse(readFileSync(join('test/goldens', name, 'golden.json'), 'utf8')))
    return prompts.flatMap(({ ids, text }) => (text === undefined ? [] : [{ name, ids, text }]))
  })

describe('the reference tokenizer agrees', () => {
  test.each(texts)('$name: $text', ({ name, ids, text }) => {
    const tokenizer = open(join('test/goldens', name))
    expect(tokenizer.encode(text, { special: true })).toEqual(ids)
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(text)
  })

  test("the demo model's prompts and continuations", () => {
    const schema = z.object({
      greedy: z.array(
        z.object({ prompt: z.string(), prompt_ids: z.array(z.int()), tokens: z.array(z.int()), text: z.string() }),
      ),
    })
    const { greedy } = schema.parse(JSON.parse(readFileSync('models/tales-moe/reference.json', 'utf8')))
    for (const { prompt, prompt_ids: ids, tokens, text } of greedy) {
      expect(demo.encode(prompt, { special: true })).toEqual(ids)
      const stream = demo.createTextStream({ skipSpecial: true })
      expect(tokens.map((id) => stream.push(id)).join('') + stream.flush()).toBe(text)
    }
  })
})

/** Text with what is hard: accents in two forms, emoji of several code points, controls, rare planes. */
const anyText = fc
  .array(
    fc.oneof(
      fc.string({ unit: 'grapheme' }),
      fc.constantFrom('é', 'e\u0301', '👩‍👩‍👧', '한', '\u1112\u1161\u11ab', '\u0000', ' ', '\r\n', '𒀀', '<|im_end|>'),
    ),
    { maxLength: 12 },
  )
  .map((parts) => parts.join(''))
const runs = { seed: 11, numRuns: 300 }

describe('text and back', () => {
  test('any text survives a byte-level tokenizer', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        expect(golden.decode(golden.encode(text, { special: true }), { skipSpecial: false })).toBe(text)
      }),
      runs,
    )
  })

  test('any text survives a sentencepiece tokenizer', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const ids = sentencepiece.encode(text, { special: false })
        expect(sentencepiece.decode(ids, { skipSpecial: false })).toBe(text)
      }),
      runs,
    )
  })

  test('tokens of any ids, pushed one by one, give the text of the whole and no half characters', () => {
    for (const tokenizer of [golden, sentencepiece]) {
      fc.assert(
        fc.property(
          fc.array(fc.nat(tokenizer.vocabularySize + 2), { maxLength: 40 }),
          fc.boolean(),
          (ids, skipSpecial) => {
            const stream = tokenizer.createTextStream({ skipSpecial })
            const pieces = ids.map((id) => stream.push(id))
            const bytes = ids
              .filter((id) => !(skipSpecial && tokenizer.isSpecial(id)))
              .map((id) => tokenizer.tokenBytes(id) ?? new Uint8Array())
            const whole = new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(bytes))
            expect(pieces.join('') + stream.flush()).toBe(whole)
            for (const piece of pieces) expect(piece.isWellFormed()).toBe(true)
          },
        ),
        runs,
      )
    }
  })

  test('a character in four tokens comes out with its last one', () => {
    const ids = [...Buffer.from('🙂')].map(
      (byte) => sentencepiece.tokenId(`<0x${byte.toString(16).toUpperCase()}>`) ?? -1,
    )
    const stream = sentencepiece.createTextStream({ skipSpecial: true })
    expect(ids.map((id) => stream.push(id))).toEqual(['', '', '', '🙂'])
  })

  test('what never gets whole is shown as such at the end', () => {
    const stream = golden.createTextStream({ skipSpecial: true })
    const [first = 0] = golden.encode('🙂', { special: false })
    expect(stream.push(first)).toBe('')
    expect(stream.flush()).toBe('\ufffd')
    expect(stream.flush()).toBe('')
  })

  test('special tokens are left out on demand', () => {
    const ids = golden.encode('a<|im_end|>b', { special: true })
    expect(golden.decode(ids, { skipSpecial: true })).toBe('ab')
    expect(golden.decode(ids, { skipSpecial: false })).toBe('a<|im_end|>b')
    expect(ids.map((id) => golden.isSpecial(id))).toEqual([false, true, false])
  })

  test('a continuation keeps its first space, a whole text does not have it', () => {
    const ids = sentencepiece.encode('hi hi', { special: false })
    expect(sentencepiece.decode(ids, { skipSpecial: true })).toBe('hi hi')
    const stream = sentencepiece.createTextStream({ skipSpecial: true })
    expect(ids.map((id) => stream.push(id)).join('')).toBe(' hi hi')
  })

  test('begin-of-text comes only when asked for', () => {
    expect(sentencepiece.encode('hi', { special: true })).toEqual([
      1,
      ...sentencepiece.encode('hi', { special: false }),
    ])
    expect(sentencepiece.encode('', { special: false })).toEqual([])
  })

  test('an id that is no token is nothing', () => {
    expect(golden.tokenBytes(golden.vocabularySize)).toBeNull()
    expect(golden.decode([100000], { skipSpecial: false })).toBe('')
  })
})

describe('byte offsets', () => {
  test('are sums of lengths where nothing was changed', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const { ids, byteOffsets } = golden.encodeWithOffsets(text, { special: true })
        let sum = 0
        for (const [index, id] of ids.entries()) {
          expect(byteOffsets[index]).toBe(sum)
          sum += golden.tokenBytes(id)?.length ?? 0
        }
        expect(sum).toBe(Buffer.byteLength(text))
      }),
      runs,
    )
  })

  test('never fall, and stay within the text, where it was', () => {
    for (const tokenizer of [demo, sentencepiece]) {
      fc.assert(
        fc.property(anyText, (text) => {
          const { byteOffsets } = tokenizer.encodeWithOffsets(text, { special: true })
          let last = 0
          for (const offset of byteOffsets) {
            expect(offset).toBeGreaterThanOrEqual(last)
            last = offset
          }
          expect(last).toBeLessThanOrEqual(Buffer.byteLength(text))
        }),
        runs,
      )
    }
  })

  test('find their way back from composed accents', () => {
    const { ids, byteOffsets } = demo.encodeWithOffsets('Cafe\u0301 x', { special: false })
    expect(byteOffsets).toEqual([0, 1, 2, 3, 3, 6, 7])
    expect(demo.decode(ids, { skipSpecial: false })).toBe('Café x')
  })

  test('a space that the tokenizer put in front has no place', () => {
    expect(sentencepiece.encodeWithOffsets('hi hi', { special: true })).toEqual({
      ids: [1, 263, 263],
      byteOffsets: [0, 0, 2],
    })
  })
})

describe('chat', () => {
  const messages = [{ role: 'user', content: 'hi' }]
  const answered = [...messages, { role: 'assistant', content: 'so ' }]

  test('is rendered with an open answer', () => {
    expect(golden.renderChat(messages)).toBe('<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n')
  })

  test('goes on with the last message', () => {
    expect(golden.renderChat(answered, null, {}, true)).toBe(
      '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nso ',
    )
  })

  const withTemplate = (chatTemplate: string) => {
    const source = {
      tokenizer: { tokenizerJson: 'tokenizer.json', tokenizerConfigJson: 'tokenizer_config.json' },
      chatTemplate,
    }
    return loadTokenizer('test/goldens/llama', source)
  }

  test('knows special tokens, tools and further variables', () => {
    const tokenizer = withTemplate(
      '{{ bos_token }}{{ tools | tojson }}{% if not enable_thinking %}off{% endif %}{{ eos_token }}',
    )
    expect(tokenizer?.renderChat(messages, [{ a: 1 }], { enable_thinking: false })).toBe('<|bos|>[{"a": 1}]off<|eos|>')
  })

  test.each([
    {
      why: 'what the template refuses',
      template: "{{ raise_exception('no system role') }}",
      says: /refuses the messages: no system role/,
      code: 'INVALID_ARGUMENT',
    },
    { why: 'a template that cannot be read', template: '{% if %}', says: /cannot be read/, code: 'PACK_INVALID' },
    { why: 'a last message that does not show', template: 'x', says: /cannot be continued/, code: 'INVALID_ARGUMENT' },
  ])('$why', ({ template, says, code }) => {
    const render = () => withTemplate(template)?.renderChat(answered, null, {}, true)
    expect(render).toThrow(says)
    expect(render).toThrow(expect.objectContaining({ code }))
  })

  test('needs messages, and a template', () => {
    expect(() => golden.renderChat([])).toThrow(/chat\.messages is empty/)
    expect(() => demo.renderChat(messages)).toThrow(/no chat template; send the prompt as text/)
  })
})

test('a decoder that is not known is refused by name', () => {
  writeFileSync(
    join(directory, 'odd.json'),
    JSON.stringify({
      model: { type: 'BPE', vocab: {}, merges: [] },
      decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    }),
  )
  const load = () =>
    loadTokenizer(directory, {
      tokenizer: { tokenizerJson: 'odd.json', tokenizerConfigJson: null },
      chatTemplate: null,
    })
  expect(load).toThrow(/decoder WordPiece is not supported/)
})

test('a pack without a tokenizer takes ids only', () => {
  expect(loadTokenizer(directory, { tokenizer: null, chatTemplate: null })).toBeNull()
})
