import fc from 'fast-check'
import { expect, test } from 'vitest'
import { weightUnit } from '../../services/cluster/placement.ts'
import { integerWeights, splitRows } from '../../services/cluster/planner/split.ts'

test.each([
  { count: 7, weights: [1], shares: [7] },
  { count: 7, weights: [1, 1], shares: [4, 3] },
  { count: 10, weights: [3, 1], shares: [8, 2] },
  { count: 1, weights: [1, 3], shares: [0, 1] },
  { count: 5, weights: [0, 0], shares: [3, 2] },
  { count: 0, weights: [2, 1], shares: [0, 0] },
  { count: 3, weights: [], shares: [] },
])('$count rows by $weights are $shares', ({ count, weights, shares }) => {
  expect(splitRows(count, weights)).toEqual(shares)
})

test('every row goes somewhere, and no share is off by a whole row', () => {
  fc.assert(
    fc.property(fc.nat(4096), fc.array(fc.nat(weightUnit), { minLength: 1, maxLength: 8 }), (count, weights) => {
      const shares = splitRows(count, weights)
      const sum = weights.reduce((total, weight) => total + weight, 0)
      expect(shares.reduce((total, share) => total + share, 0)).toBe(count)
      for (const [i, share] of shares.entries()) {
        const exact = sum === 0 ? count / weights.length : (count * (weights[i] ?? 0)) / sum
        expect(Math.abs(share - exact)).toBeLessThan(1)
      }
    }),
    { seed: 5 },
  )
})

test('weights add up to the unit, whatever the rows', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 16 }), (rows) => {
      expect(integerWeights(rows).reduce((sum, weight) => sum + weight, 0)).toBe(weightUnit)
    }),
    { seed: 5 },
  )
})
