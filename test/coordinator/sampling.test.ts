import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { DrawKernel } from '../../services/coordinator/draw-kernel.ts'
import { philox, uniform } from '../../services/coordinator/philox.ts'
import type { SamplingOptions } from '../../services/coordinator/request.ts'
import { addGenerated, createHistory, createSampler, type TokenHistory } from '../../services/coordinator/sampling.ts'

const plain: SamplingOptions = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  seed: 7n,
  maxTokens: 100,
  minTokens: 0,
  stopTokenIds: new Set(),
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: new Map(),
}
const noHistory = createHistory([])

/** The documented order of operations, written the slow way: the probability of each token id. */
function probabilities(logits: Float32Array, options: SamplingOptions, position: number, history: TokenHistory) {
  const adjusted = Array.from(logits, (logit, id) => {
    const count = history.generated.get(id) ?? 0
    const isSeen = count > 0 || history.prompt.has(id)
    const repetition = options.repetitionPenalty
    const repelled = isSeen ? (logit > 0 ? logit / repetition : logit * repetition) : logit
    const penalty = options.frequencyPenalty * count + (count > 0 ? options.presencePenalty : 0)
    const isMasked = position < options.minTokens && options.stopTokenIds.has(id)
    return isMasked ? Number.NEGATIVE_INFINITY : repelled - penalty + (options.logitBias.get(id) ?? 0)
  })
  const best = Math.max(...adjusted)
  if (options.temperature === 0) return adjusted.map((_, id) => (id === adjusted.indexOf(best) ? 1 : 0))
  let order = adjusted
    .map((logit, id) => ({ id, logit, weight: Math.exp((logit - best) / options.temperature) }))
    .sort((a, b) => b.logit - a.logit || a.id - b.id)
  if (options.topK > 0) order = order.slice(0, options.topK)
  const mass = order.reduce((sum, { weight }) => sum + weight, 0)
  let before = 0
  if (options.topP < 1) {
    order = order.filter(({ weight }) => {
      const isKept = before < options.topP * mass - 1e-12
      before += weight
      return isKept
    })
  }
  order = order.filter(({ weight }) => weight >= options.minP)
  const total = order.reduce((sum, { weight }) => sum + weight, 0)
  const result = adjusted.map(() => 0)
  for (const { id, weight } of order) result[id] = weight / total
  return result
}

describe('philox', () => {
  // Known answers published with the paper's library, Random123 (kat_vectors).
  test.each([
    { counter: [0, 0, 0, 0], key: [0, 0], answer: [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8] },
    {
      counter: [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      key: [0xffffffff, 0xffffffff],
      answer: [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    },
    {
      counter: [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      key: [0xa4093822, 0x299f31d0],
      answer: [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    },
  ])('gives the published words for $counter', ({ counter, key, answer }) => {
    const words = Uint32Array.from(counter)
    philox(words, key[0] ?? 0, key[1] ?? 0)
    expect([...words]).toEqual(answer)
  })

  test('a seed, candidate or position that differs by one gives another number in [0, 1)', () => {
    const numbers = [
      uniform(1n, 0, 0),
      uniform(2n, 0, 0),
      uniform(1n, 1, 0),
      uniform(1n, 0, 1),
      uniform(1n << 63n, 0, 0),
    ]
    expect(new Set(numbers).size).toBe(numbers.length)
    for (const number of numbers) expect(number >= 0 && number < 1).toBe(true)
    expect(uniform(1n, 0, 0)).toBe(numbers[0])
  })
})

describe('sampler', () => {
  const logit = fc.oneof(
    fc.float({ min: -20, max: 20, noNaN: true }),
    // Few values, so that ties happen.
    fc.integer({ min: -3, max: 3 }),
  )
  const cases = fc.record({
    logits: fc.array(logit, { minLength: 1, maxLength: 60 }),
    temperature: fc.constantFrom(0, 0.3, 1, 2.5),
    topK: fc.constantFrom(0, 1, 2, 5, 1000),
    topP: fc.constantFrom(0.05, 0.33, 0.9, 1),
    minP: fc.constantFrom(0, 0.07, 1),
    repetitionPenalty: fc.constantFrom(1, 1.3),
    frequencyPenalty: fc.constantFrom(0, 0.7),
    presencePenalty: fc.constantFrom(0, -0.4),
    bias: fc.array(fc.tuple(fc.nat(59), fc.constantFrom(-100, 1.5))),
    seen: fc.array(fc.nat(59), { maxLength: 8 }),
    minTokens: fc.constantFrom(0, 3),
    position: fc.nat(5),
    seed: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  })

  test('chooses what the slow definition chooses, for any options', () => {
    fc.assert(
      fc.property(cases, (picked) => {
        const logits = Float32Array.from(picked.logits)
        const inside = (id: number) => id < logits.length
        const history = createHistory(picked.seen.slice(0, 3).filter(inside))
        for (const id of picked.seen.slice(3).filter(inside)) addGenerated(history, id)
        const options: SamplingOptions = {
          ...plain,
          ...picked,
          stopTokenIds: new Set(logits.length > 1 ? [0] : []),
          logitBias: new Map(picked.bias.filter(([id]) => inside(id))),
        }
        const before = logits.slice()
        const id = createSampler(logits.length).sample(logits, options, picked.position, 2, history)
        expect(logits).toEqual(before)

        const expected = probabilities(logits, options, picked.position, history)
        const share = picked.temperature === 0 ? 0.5 : uniform(picked.seed, 2, picked.position)
        const below = expected.slice(0, id).reduce((sum, p) => sum + p, 0)
        // The two add up in another order, and weights may be f32: near a boundary either neighbour is right.
        expect(share).toBeGreaterThanOrEqual(below - 1e-6)
        expect(share).toBeLessThanOrEqual(below + (expected[id] ?? 0) + 1e-6)
        expect(expected[id]).toBeGreaterThan(0)
      }),
      { seed: 20261124, numRuns: 3000 },
    )
  })

  test('draws from the whole of a wide vocabulary, its first and last tokens among them', () => {
    const shapes = fc.record({
      size: fc.integer({ min: 60, max: 700 }),
      spread: fc.constantFrom(0, 1, 30),
      temperature: fc.constantFrom(0.3, 1, 2),
      seed: fc.nat(10000),
      share: fc.oneof(fc.constantFrom(0, 1 - 2 ** -53), fc.double({ min: 0, max: 0.999999, noNaN: true })),
    })
    fc.assert(
      fc.property(shapes, ({ size, spread, temperature, seed, share }) => {
        const logits = Float32Array.from({ length: size }, (_, id) => spread * uniform(BigInt(seed), id, 0))
        const id = new DrawKernel(size).draw(logits, temperature, share)
        expect(new DrawKernel(size).draw(logits, 1e-45, share)).toBe(-1)
        const expected = probabilities(logits, { ...plain, temperature }, 0, noHistory)
        const below = expected.slice(0, id).reduce((sum, p) => sum + p, 0)
        expect(share).toBeGreaterThanOrEqual(below - 1e-6)
        expect(share).toBeLessThanOrEqual(below + (expected[id] ?? 0) + 1e-6)
      }),
      { seed: 16, numRuns: 300 },
    )
  })

  test('scratch of an earlier token leaves no trace', () => {
    const sampler = createSampler(300)
    const random = (seed: number) => Float32Array.from({ length: 300 }, (_, id) => 8 * uniform(BigInt(seed), id, 0))
    for (let seed = 0; seed < 50; seed++) {
      const options = { ...plain, topP: 0.7, topK: seed % 2 === 0 ? 0 : 40, seed: BigInt(seed) }
      const logits = random(seed)
      expect(sampler.sample(logits, options, seed, 0, noHistory)).toBe(
        createSampler(300).sample(logits, options, seed, 0, noHistory),
      )
    }
  })

  test('draws each token as often as its probability says (chi-square, 99.9 %)', () => {
    const logits = Float32Array.from([2, 1.5, 0, -1, 1, 0.3, -2, 0.9])
    const options = { ...plain, temperature: 0.8, topP: 0.98 }
    const expected = probabilities(logits, options, 0, noHistory)
    const sampler = createSampler(logits.length)
    const counts = logits.map(() => 0)
    const draws = 20000
    for (let position = 0; position < draws; position++) {
      const id = sampler.sample(logits, options, position, 0, noHistory)
      counts[id] = (counts[id] ?? 0) + 1
    }
    let chiSquare = 0
    let cells = 0
    for (const [id, probability] of expected.entries()) {
      if (probability === 0) {
        expect(counts[id]).toBe(0)
        continue
      }
      const difference = (counts[id] ?? 0) - draws * probability
      chiSquare += (difference * difference) / (draws * probability)
      cells++
    }
    expect(cells).toBe(6)
    expect(chiSquare).toBeLessThan(20.52) // 5 degrees of freedom
  })

  test.each([
    { logits: [1, 3, 3, 2], why: 'the lower of two equal ones', answer: 1 },
    { logits: [Number.NaN, -5, -4], why: 'never what is not a number', answer: 2 },
    { logits: [Number.NEGATIVE_INFINITY, -900], why: 'the only finite one', answer: 1 },
  ])('greedy takes $why', ({ logits, answer }) => {
    const sampler = createSampler(logits.length)
    const greedy = { ...plain, temperature: 0 }
    expect(sampler.sample(Float32Array.from(logits), greedy, 0, 0, noHistory)).toBe(answer)
    expect(logits[sampler.sample(Float32Array.from(logits), plain, 0, 0, noHistory)]).toSatisfy(Number.isFinite)
  })

  test('logits without a finite maximum fail and choose nothing', () => {
    const sampler = createSampler(2)
    for (const logits of [
      [Number.NaN, Number.NaN],
      [Number.POSITIVE_INFINITY, 0],
      [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
    ]) {
      expect(() => sampler.sample(Float32Array.from(logits), plain, 0, 0, noHistory)).toThrow(/no token can be chosen/)
    }
  })
})
