import fc from 'fast-check'
import { expect, test } from 'vitest'
import { expNegative, logAtLeastOne } from '../../services/coordinator/exp-log.ts'
import { createLogprobs } from '../../services/coordinator/logprobs.ts'

const logitsOf = fc.array(fc.oneof(fc.float({ min: -80, max: 80, noNaN: true }), fc.integer({ min: -2, max: 2 })), {
  minLength: 1,
  maxLength: 50,
})

test('the exponential and the logarithm are within two units in the last place of the engine’s', () => {
  fc.assert(
    fc.property(
      fc.double({ min: -700, max: 0, noNaN: true }),
      fc.double({ min: 1, max: 1e15, noNaN: true }),
      (x, y) => {
        expect(Math.abs(expNegative(x) / Math.exp(x) - 1)).toBeLessThan(4.5e-16)
        expect(Math.abs(logAtLeastOne(y) - Math.log(y))).toBeLessThanOrEqual(4.5e-16 * Math.max(1, Math.log(y)))
      },
    ),
    { seed: 20261124, numRuns: 5000 },
  )
  expect(expNegative(0)).toBe(1)
  expect(expNegative(Number.NEGATIVE_INFINITY)).toBe(0)
  expect(expNegative(Number.NaN)).toBe(0)
  expect(logAtLeastOne(1)).toBe(0)
})

test('log-probabilities, ranks and the likeliest tokens equal the plain definition', () => {
  fc.assert(
    fc.property(logitsOf, fc.nat(), fc.nat(60), (values, pick, wanted) => {
      const logits = Float32Array.from(values)
      const chosen = pick % logits.length
      const best = Math.max(...logits)
      const logSum = best + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - best), 0))
      const order = Array.from(logits, (logit, id) => ({ id, logit })).sort((a, b) => b.logit - a.logit || a.id - b.id)

      const result = createLogprobs(logits.length).of(logits, chosen, wanted)
      expect(Math.abs(result.chosen - ((logits[chosen] ?? 0) - logSum))).toBeLessThan(1e-5)
      expect(Math.fround(result.chosen)).toBe(result.chosen)
      expect(result.rank).toBe(order.findIndex(({ id }) => id === chosen) + 1)
      expect(result.top.map(({ id }) => id)).toEqual(order.slice(0, wanted).map(({ id }) => id))
      expect(result.all).toBeNull()
      const own = result.top.find(({ id }) => id === chosen)
      if (own !== undefined) expect(own.logprob).toBe(result.chosen)
    }),
    { seed: 20261124, numRuns: 2000 },
  )
})

test('with -1 the whole vocabulary comes, by token id, with the chosen one’s bits in place', () => {
  const logits = Float32Array.from([0.1, 7, -3, 2])
  const { chosen, top, all } = createLogprobs(4).of(logits, 3, -1)
  expect(top).toEqual([])
  expect(all?.[3]).toBe(chosen)
  expect(all?.reduce((sum, logprob) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 6)
})

test('a largest logit that is not finite is refused', () => {
  const logprobs = createLogprobs(2)
  expect(() => logprobs.of(Float32Array.from([Number.POSITIVE_INFINITY, 0]), 0, 0)).toThrow(/largest logit is Infinity/)
  expect(() => logprobs.of(Float32Array.from([Number.NaN, Number.NaN]), 0, 0)).toThrow(/largest logit/)
})
