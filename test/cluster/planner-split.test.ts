import fc from 'fast-check'
import { expect, test } from 'vitest'
import { weightUnit } from '../../services/cluster/placement.ts'
import { integerWeights } from '../../services/cluster/planner/split.ts'

test.each([
  { rows: [7], weights: [65_536] },
  { rows: [0.1, 0.1], weights: [32_768, 32_768] },
  { rows: [3, 1], weights: [49_152, 16_384] },
  { rows: [1, 1, 1], weights: [21_846, 21_845, 21_845] },
  { rows: [0, 5], weights: [0, 65_536] },
  { rows: [0, 0], weights: [32_768, 32_768] },
  { rows: [], weights: [] },
])('rows $rows weigh $weights', ({ rows, weights }) => {
  expect(integerWeights(rows)).toEqual(weights)
})

test('weights add up to the unit, and none is off by a whole one', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 16 }), (rows) => {
      const weights = integerWeights(rows)
      const sum = rows.reduce((total, part) => total + part, 0)
      expect(weights.reduce((total, weight) => total + weight, 0)).toBe(weightUnit)
      for (const [i, weight] of weights.entries()) {
        const exact = sum === 0 ? weightUnit / rows.length : (weightUnit * (rows[i] ?? 0)) / sum
        expect(Math.abs(weight - exact)).toBeLessThan(1)
      }
    }),
    { seed: 5 },
  )
})
