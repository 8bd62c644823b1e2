import { weightUnit } from '../placement.ts'

/**
 * Integer weights in the proportion of `rows` (rows/s per home), their sum exactly `weightUnit`: the largest fractions are
 * rounded up, the first of equals first. Where there are no rows, all homes weigh the same.
 */
export function integerWeights(rows: readonly number[]): number[] {
  const sum = rows.reduce((total, part) => total + part, 0)
  const exact = rows.map((part) => (sum > 0 ? (weightUnit * part) / sum : weightUnit / rows.length))
  const weights = exact.map(Math.floor)
  const missing = weightUnit - weights.reduce((total, weight) => total + weight, 0)
  const byFraction = exact.map((value, index) => ({ index, fraction: value - Math.floor(value) }))
  byFraction.sort((a, b) => b.fraction - a.fraction || a.index - b.index)
  for (const { index } of byFraction.slice(0, Math.max(0, missing))) weights[index] = (weights[index] ?? 0) + 1
  return weights
}
