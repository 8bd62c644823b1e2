import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { drawKernelBytes } from '../../services/coordinator/draw-kernel.ts'
import { Attention, type Item, projectionWidth } from '../../services/coordinator/team/attention.ts'
import { AttentionKernel, kernelBytes, kernelBytesMax } from '../../services/coordinator/team/attention-kernel.ts'
import { KvCache, kvBlockTokens } from '../../services/coordinator/team/kv-cache.ts'
import type { AttentionSpec } from '../../services/model/spec.ts'
import { randomFloats } from '../graph/random.ts'

const kernelDirectory = new URL('../../services/coordinator/team/kernel/', import.meta.url)

test.each([
  ['attention', kernelBytes],
  ['sampling', drawKernelBytes],
])('the kernel of %s was compiled from its source; else: npm run kernel', (name, bytes) => {
  const sources = [`${name}.ts`, 'exp.ts'].map((file) => readFileSync(new URL(file, kernelDirectory)))
  // The last section of the module: id, length, name.
  const digest = bytes.subarray(-32).toString('hex')
  expect(digest).toBe(createHash('sha256').update(Buffer.concat(sources)).digest('hex'))
})

type Shape = Pick<AttentionSpec, 'heads' | 'kvHeads' | 'headDim' | 'window' | 'clip' | 'qkNorm'>

const shapes: fc.Arbitrary<Shape> = fc
  .record({
    kvHeads: fc.integer({ min: 1, max: 3 }),
    heads: fc.integer({ min: 1, max: 3 }),
    headDim: fc.constantFrom(4, 12, 16, 20, 64, 80, 128),
    window: fc.option(fc.integer({ min: 1, max: 50 }), { nil: null }),
    clip: fc.option(fc.constant(0.5), { nil: null }),
    qkNorm: fc.constantFrom('none', 'head', 'full'),
  })
  .map((shape) => ({ ...shape, heads: shape.heads * shape.kvHeads }) as Shape)

function specOf(shape: Shape): AttentionSpec {
  const half = shape.headDim / 2
  return {
    ...shape,
    scale: 1 / Math.sqrt(shape.headDim),
    qkvBias: false,
    outputBias: false,
    rope: { inverseFrequencies: Array.from({ length: half }, (_, i) => 10000 ** (-i / half)), attentionFactor: 1 },
  }
}

const slots = 3
const tableWidth = 32
/** Blocks of each slot, in no order. */
const tables = Int32Array.from({ length: slots * tableWidth }, (_, place) => (place * 7) % (slots * tableWidth))

/** Attention of all heads on one thread, and the projections of a sequence of `tokens`. */
function setUp(shape: Shape, tokens: number, seed: number) {
  const spec = specOf(shape)
  const kernel = new AttentionKernel()
  const cache = new KvCache(kernel, [
    { heads: spec.kvHeads, firstHead: 0, allHeads: spec.kvHeads, headDim: spec.headDim },
  ])
  // What blocks held before must not show.
  for (let block = 0; block < slots * tableWidth; block++) {
    const at = cache.at(block, 0) / 4
    kernel.floats.fill(Number.NaN, at, at + 2 * spec.kvHeads * kvBlockTokens * spec.headDim)
  }
  const attention = new Attention(kernel, cache, tableWidth)
  const norm = (heads: number, from: number) =>
    spec.qkNorm === 'none' ? null : randomFloats(spec.qkNorm === 'full' ? heads * spec.headDim : spec.headDim, 1, from)
  const weights = { qNorm: norm(spec.heads, seed + 1), kNorm: norm(spec.kvHeads, seed + 2), normEps: 1e-5 }
  const part = attention.part({ spec, kvHeads: { from: 0, to: spec.kvHeads }, ...weights })
  const width = projectionWidth(part)
  return { spec, attention, part, width, weights, qkv: randomFloats(tokens * width, 1, seed) }
}

/** One step with the given rows of a sequence, or of several. */
function step({ spec, attention, part, width, qkv }: ReturnType<typeof setUp>, items: readonly Item[]): Float32Array {
  const rows = items.reduce((sum, { count }) => sum + count, 0)
  const fed = new Float32Array(rows * width)
  for (const { row, start, count } of items) {
    fed.set(qkv.subarray(start * width, (start + count) * width), row * width)
  }
  const squares = new Float64Array(rows * (spec.heads + spec.kvHeads))
  const out = new Float32Array(rows * spec.heads * spec.headDim)
  attention.reserve(part, rows)
  const first = rows >> 1
  attention.load(part, fed, 0, first)
  attention.load(part, fed.subarray(first * width), first, rows - first)
  if (spec.qkNorm === 'full') attention.sumSquares(part, rows, squares)
  attention.run(part, 0, items, tables, squares, out)
  return out
}

/** As the papers write it, in f64. */
function plainAttention({ spec, weights, width, qkv }: ReturnType<typeof setUp>, tokens: number): Float64Array {
  const { heads, kvHeads, headDim, window, clip, qkNorm } = spec
  const limit = clip ?? Number.POSITIVE_INFINITY
  const square = (values: ArrayLike<number>) => Array.from(values).reduce((sum, x) => sum + x * x, 0)
  const prepared = (token: number, first: number, count: number, norm: Float32Array | null): number[][] => {
    const all = qkv.subarray(token * width + first * headDim, token * width + (first + count) * headDim)
    return Array.from({ length: count }, (_, head) => {
      let values = Array.from(all.subarray(head * headDim, (head + 1) * headDim))
      if (norm !== null) {
        const mean = qkNorm === 'full' ? square(all) / all.length : square(values) / headDim
        const offset = qkNorm === 'full' ? head * headDim : 0
        values = values.map((x, i) => (x / Math.sqrt(mean + weights.normEps)) * (norm[offset + i] ?? 0))
      }
      values = values.map((x) => Math.max(-limit, Math.min(limit, x)))
      const half = headDim / 2
      return values.map((x, i) => {
        const angle = token * (spec.rope.inverseFrequencies[i % half] ?? 0)
        const other = i < half ? -(values[i + half] ?? 0) : (values[i - half] ?? 0)
        return x * Math.cos(angle) + other * Math.sin(angle)
      })
    })
  }
  const keys = Array.from({ length: tokens }, (_, token) => prepared(token, heads, kvHeads, weights.kNorm))
  const out = new Float64Array(tokens * heads * headDim)
  for (let token = 0; token < tokens; token++) {
    const queries = prepared(token, 0, heads, weights.qNorm)
    const first = window === null ? 0 : Math.max(0, token - window + 1)
    queries.forEach((query, head) => {
      const kvHead = Math.floor(head / (heads / kvHeads))
      const scores = keys.slice(first, token + 1).map((key) => {
        return query.reduce((sum, x, i) => sum + x * (key[kvHead]?.[i] ?? 0), 0) * spec.scale
      })
      const largest = Math.max(...scores)
      const shares = scores.map((score) => Math.exp(score - largest))
      const sum = shares.reduce((total, share) => total + share, 0)
      shares.forEach((share, index) => {
        const value = (first + index) * width + (heads + kvHeads + kvHead) * headDim
        for (let i = 0; i < headDim; i++) {
          const x = Math.max(-limit, Math.min(limit, qkv[value + i] ?? 0))
          const to = (token * heads + head) * headDim + i
          out[to] = (out[to] ?? 0) + (share / sum) * x
        }
      })
    })
  }
  return out
}

test('equals plain attention', () => {
  fc.assert(
    fc.property(shapes, fc.integer({ min: 1, max: 100 }), fc.nat(1000), (shape, tokens, seed) => {
      const made = setUp(shape, tokens, seed)
      const y = step(made, [{ slot: 0, start: 0, count: tokens, row: 0 }])
      const expected = plainAttention(made, tokens)
      const worst = y.reduce((most, value, index) => Math.max(most, Math.abs(value - (expected[index] ?? 0))), 0)
      expect(worst).toBeLessThan(2e-5)
    }),
    { seed: 14, numRuns: 60 },
  )
})

test("a row's bits depend neither on chunks nor on other sequences, nor on what blocks held before", () => {
  const cuts = fc.array(fc.integer({ min: 1, max: 80 }), { minLength: 1, maxLength: 12 })
  fc.assert(
    fc.property(shapes, cuts, fc.nat(1000), (shape, chunks, seed) => {
      const tokens = chunks.reduce((sum, count) => sum + count, 0)
      const made = setUp(shape, tokens + 1, seed)
      const width = made.spec.heads * made.spec.headDim
      const whole = step(made, [{ slot: 0, start: 0, count: tokens, row: 0 }])
      // The other sequence begins one token later, and takes blocks between those of this one.
      let done = 0
      for (const count of chunks) {
        const y = step(made, [
          { slot: 1, start: done, count, row: 0 },
          { slot: 2, start: done + 1, count, row: count },
        ])
        expect(new Int32Array(y.buffer, 0, count * width)).toEqual(
          new Int32Array(whole.buffer, done * width * 4, count * width),
        )
        done += count
      }
    }),
    { seed: 15, numRuns: 40 },
  )
})

test("a block's pieces lie apart, stay where they are, and are copied together", () => {
  const kernel = new AttentionKernel()
  const cache = new KvCache(kernel, [
    { heads: 2, firstHead: 0, allHeads: 2, headDim: 8 },
    { heads: 0, firstHead: 1, allHeads: 1, headDim: 8 },
    { heads: 1, firstHead: 0, allHeads: 2, headDim: 4 },
  ])
  const floats = [2 * 2 * kvBlockTokens * 8, 0, 2 * kvBlockTokens * 4]
  const pieces = [5, 0, 3].flatMap((block) => floats.map((count, layer) => ({ at: cache.at(block, layer) / 4, count })))
  for (const [index, { at, count }] of pieces.entries()) kernel.floats.fill(index + 1, at, at + count)
  cache.copy(5, 7)
  for (const [index, { at, count }] of pieces.entries()) {
    expect(kernel.floats.subarray(at, at + count).every((value) => value === index + 1)).toBe(true)
  }
  for (const [layer, count] of floats.entries()) {
    const at = cache.at(7, layer) / 4
    expect(at).not.toBe(cache.at(5, layer) / 4)
    expect(kernel.floats.subarray(at, at + count).every((value) => value === layer + 1)).toBe(true)
  }
})

test('where memory cannot grow, what was there stays, and a later try begins anew', () => {
  const kernel = new AttentionKernel()
  const span = { at: 0, bytes: 0 }
  const at = kernel.reserve(span, 1000)
  expect(() => kernel.reserve(span, kernelBytesMax)).toThrow(/no memory/)
  expect(span).toEqual({ at, bytes: 1000 })
  expect(kernel.reserve(span, 3000)).not.toBe(at)
})
