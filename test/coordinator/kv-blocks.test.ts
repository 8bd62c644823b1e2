import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { KvBlocks } from '../../services/coordinator/kv-blocks.ts'
import { KvPool } from '../../services/coordinator/kv-pool.ts'
import type { Sequence } from '../../services/coordinator/sequence.ts'
import { kvBlockTokens } from '../../services/coordinator/team/kv-cache.ts'

describe('the pool of blocks', () => {
  test('gives what holds nothing first, then what was unused longest, and never what is used', () => {
    const pool = new KvPool(3)
    const [a, b, c] = [pool.take(), pool.take(), pool.take()]
    expect(new Set([a, b, c]).size).toBe(3)
    pool.name(a, 'a')
    pool.name(b, 'b')
    for (const block of [b, a, c]) pool.release(block)
    expect(pool.free).toBe(3)
    expect(pool.take()).toBe(c)
    expect(pool.find(['a', 'x'])).toEqual([a])
    pool.share(b)
    expect(pool.take()).toBe(a)
    expect(pool.find(['a'])).toEqual([])
    expect(pool.find(['b', 'a'])).toEqual([b])
    expect(pool.free).toBe(0)
  })

  test('uses kept blocks again before it touches more, until one of them is missed', () => {
    const pool = new KvPool(10)
    const fill = (...names: string[]) => {
      const blocks = names.map((name) => {
        const block = pool.take()
        pool.name(block, name)
        return block
      })
      for (const block of blocks) pool.release(block)
      return blocks
    }
    const first = fill('a', 'b')
    pool.miss(['c', 'd'])
    expect(fill('c', 'd')).toEqual(first)
    // Nothing of it can be found from its beginning on.
    pool.miss(['x', 'a', 'b'])
    expect(fill('e')).toEqual([first[0]])
    pool.miss(['a', 'b', 'x'])
    expect(pool.find(['d'])).toEqual([first[1]])
    expect(new Set([...fill('a'), ...fill('b'), ...first]).size).toBe(4)
    expect(pool.find(['d'])).toEqual([first[1]])
    expect(pool.find(['e'])).toEqual([first[0]])
    expect(pool.free).toBe(10)
    expect(first).toContain(fill('f')[0])
  })

  test('in the end touches all there is, for prompts that come again', () => {
    const pool = new KvPool(10)
    for (let round = 0; round < 5; round++) {
      for (let prompt = 0; prompt < 10; prompt++) {
        if (pool.find([`${prompt}`]).length > 0) continue
        pool.miss([`${prompt}`])
        const block = pool.take()
        pool.name(block, `${prompt}`)
        pool.release(block)
      }
    }
    for (let prompt = 0; prompt < 10; prompt++) expect(pool.find([`${prompt}`])).toHaveLength(1)
  })

  test('what is taken over goes beside what is kept, while there is room', () => {
    const pool = new KvPool(3, true)
    const adopt = (name: string) => {
      const block = pool.takeFresh()
      pool.name(block, name)
      pool.release(block)
    }
    for (const name of ['a', 'b', 'c']) adopt(name)
    expect(pool.find(['a', 'b', 'c'])).toHaveLength(3)
    for (const name of ['c', 'b', 'a']) {
      const [block = -1] = pool.find([name])
      pool.share(block)
      pool.release(block)
    }
    adopt('d')
    expect(pool.find(['a', 'b'])).toHaveLength(2)
    expect(pool.find(['c'])).toEqual([])
    const both = (names: [string, boolean][]) => new Map(names)
    expect(pool.takeChanges()).toEqual(
      both([
        ['a', true],
        ['b', true],
        ['c', false],
        ['d', true],
      ]),
    )
    expect(pool.names().sort()).toEqual(['a', 'b', 'd'])
    pool.forget()
    expect(pool.takeChanges()).toEqual(
      both([
        ['a', false],
        ['b', false],
        ['d', false],
      ]),
    )
  })

  test('forgets any number of blocks', () => {
    const size = 200_000
    const pool = new KvPool(size)
    const blocks = Array.from({ length: size }, () => pool.take())
    for (const block of blocks) pool.name(block, `${block}`)
    for (const block of blocks) pool.release(block)
    expect(pool.kept).toBe(size)
    pool.forget()
    expect(pool.kept).toBe(0)
    expect(pool.free).toBe(size)
    expect(pool.find(['7'])).toEqual([])
  })

  test('two blocks that hold the same: one is found, the other is used again', () => {
    const pool = new KvPool(2)
    const [a, b] = [pool.take(), pool.take()]
    pool.name(a, 'same')
    pool.name(b, 'same')
    pool.release(a)
    pool.release(b)
    expect(pool.take()).toBe(b)
    expect(pool.find(['same'])).toEqual([a])
  })
})

const slots = 4
const width = 8
const tokenLists = fc.array(fc.nat(1), { minLength: 1, maxLength: 3 })

/** Blocks of tokens of few kinds, so that beginnings are often alike. */
const beginnings = fc.record({
  kinds: tokenLists,
  tail: fc.integer({ min: 1, max: kvBlockTokens }),
  salt: fc.constantFrom('', 'own'),
})

function sequenceOf(slot: number, { kinds, tail, salt }: { kinds: number[]; tail: number; salt: string }): Sequence {
  const tokens = [...kinds.flatMap((kind) => Array<number>(kvBlockTokens).fill(kind)), ...Array<number>(tail).fill(9)]
  const output = { promptLogprobs: null, promptExpertTrace: false }
  return {
    ...{ tokens, slot, cached: 0, blocks: [], names: [] },
    request: { request: { cacheSalt: salt, output } },
  } as unknown as Sequence
}

test('a sequence finds blocks of exactly its own first tokens, whatever came and went', () => {
  const step = fc.record({
    slot: fc.nat(slots - 1),
    beginning: beginnings,
    share: fc.double({ min: 0, max: 1, noNaN: true }),
  })
  fc.assert(
    fc.property(fc.integer({ min: 4 * 4, max: 40 }), fc.array(step, { maxLength: 60 }), (size, steps) => {
      const table = new Int32Array(slots * width)
      const kv = new KvBlocks(size * kvBlockTokens, table, width)
      const running = new Map<number, Sequence>()
      /** What each block really holds: all tokens up to its end, and the salt. */
      const held = new Map<number, string>()
      for (const { slot, beginning, share } of steps) {
        const ended = running.get(slot)
        if (ended) kv.release(ended)
        const sequence = sequenceOf(slot, beginning)
        const { tokens } = sequence
        const found = kv.found(sequence)
        kv.begin(sequence)
        running.set(slot, sequence)
        expect(sequence.cached).toBe(found.tokens)
        expect(sequence.cached).toBeLessThan(tokens.length)
        const contentOf = (index: number) => `${beginning.salt}:${tokens.slice(0, (index + 1) * kvBlockTokens)}`
        for (const [index, block] of sequence.blocks.entries()) expect(held.get(block)).toBe(contentOf(index))

        const before = sequence.cached
        const count = Math.max(1, Math.floor(share * (tokens.length - before)))
        kv.extend(sequence, before + count)
        for (const [index, block] of sequence.blocks.entries()) if (index * kvBlockTokens >= before) held.delete(block)
        sequence.cached += count
        kv.publish(sequence, before)
        for (let index = 0; (index + 1) * kvBlockTokens <= sequence.cached; index++) {
          held.set(sequence.blocks[index] ?? -1, contentOf(index))
        }
        expect([...table.subarray(slot * width, slot * width + sequence.blocks.length)]).toEqual(sequence.blocks)

        // Blocks of different contents are never one block.
        const uses = [...running.values()].flatMap(({ blocks }) => blocks)
        expect(kv.free).toBe(size - new Set(uses).size)
        expect(kv.own(sequence)).toBe(
          sequence.blocks.filter((block) => uses.filter((other) => other === block).length === 1).length,
        )
      }
    }),
    { seed: 21, numRuns: 300 },
  )
})

test('what was computed before is found as far as whole blocks go, but for the last token', () => {
  const kv = new KvBlocks(20 * kvBlockTokens, new Int32Array(slots * width), width)
  const first = sequenceOf(0, { kinds: [1, 2, 3], tail: 5, salt: '' })
  kv.begin(first)
  kv.extend(first, first.tokens.length)
  first.cached = first.tokens.length
  kv.publish(first, 0)
  kv.release(first)
  const found = (kinds: number[], tail: number, salt = '') => kv.found(sequenceOf(1, { kinds, tail, salt })).tokens
  expect(found([1, 2, 3], 5)).toBe(3 * kvBlockTokens)
  expect(found([1, 2], kvBlockTokens)).toBe(2 * kvBlockTokens)
  expect(found([1, 3, 3], 1)).toBe(kvBlockTokens)
  expect(found([2, 2, 3], 1)).toBe(0)
  expect(found([1, 2, 3], 5, 'own')).toBe(0)
  const scored = sequenceOf(1, { kinds: [1, 2, 3], tail: 5, salt: '' })
  scored.request.request.output.promptLogprobs = 0
  expect(kv.found(scored).tokens).toBe(0)
})

test('an era finds nothing of the one before, nor what running sequences add to it', () => {
  const kv = new KvBlocks(20 * kvBlockTokens, new Int32Array(slots * width), width)
  const compute = (sequence: Sequence, upTo: number) => {
    const before = sequence.cached
    kv.extend(sequence, upTo)
    sequence.cached = upTo
    kv.publish(sequence, before)
  }
  const beginning = { kinds: [1, 2, 3], tail: 5, salt: '' }
  const [ended, running, fork, later] = [0, 1, 2, 3].map((slot) => sequenceOf(slot, beginning))
  if (!ended || !running || !fork || !later) throw new Error('four')
  kv.begin(ended)
  compute(ended, ended.tokens.length)
  kv.release(ended)
  kv.begin(running)
  expect(running.cached).toBe(3 * kvBlockTokens)
  kv.fork(running, fork)
  kv.beginEra()
  expect(kv.found(later).tokens).toBe(0)
  compute(running, running.tokens.length)
  compute(fork, fork.tokens.length)
  kv.release(running)
  kv.release(fork)
  expect(kv.found(later).tokens).toBe(0)
  kv.begin(later)
  compute(later, later.tokens.length)
  kv.release(later)
  expect(kv.found(sequenceOf(0, beginning)).tokens).toBe(3 * kvBlockTokens)
  expect(kv.free).toBe(20)
})

test('a fork shares what is full and copies the rest', () => {
  const kv = new KvBlocks(20 * kvBlockTokens, new Int32Array(slots * width), width)
  const from = sequenceOf(0, { kinds: [1, 2], tail: 5, salt: '' })
  kv.extend(from, from.tokens.length)
  from.cached = from.tokens.length
  const to = sequenceOf(1, { kinds: [1, 2], tail: 5, salt: '' })
  expect(kv.fork(from, to)).toEqual({ from: from.blocks[2], to: to.blocks[2] })
  expect(to.blocks.slice(0, 2)).toEqual(from.blocks.slice(0, 2))
  expect(to.cached).toBe(from.cached)
  expect(kv.usedTokens).toBe(4 * kvBlockTokens)
  kv.release(from)
  expect(kv.usedTokens).toBe(3 * kvBlockTokens)
  const even = sequenceOf(2, { kinds: [1, 2], tail: 5, salt: '' })
  to.cached = 2 * kvBlockTokens
  expect(kv.fork(to, even)).toBeNull()
})
