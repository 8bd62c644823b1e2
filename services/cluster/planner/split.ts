import { strict as assert } from 'node:assert'
import { weightUnit } from '../placement.ts'

/**
 * Integer weights in the proportion of `rows` (rows/s per home), their sum exactly `weightUnit`. Where there are no
 * rows, all homes weigh the same.
 */
export function integerWeights(rows: readonly number[]): number[] {
  return divide(weightUnit, rows)
}

/**
 * Divides `count` rows of a batch over an expert's homes by weight: whole rows, the same for the same arguments, their
 * sum is `count`. The largest fractions are rounded up, the first of equals first.
 */
export function splitRows(count: number, weights: readonly number[]): number[] {
  assert(Number.isInteger(count))
  assert(count >= 0)
  return divide(count, weights)
}

function divide(whole: number, parts: readonly number[]): number[] {
  if (parts.length === 0) return []
  if (parts.length === 1) return [whole]
  const sum = parts.reduce((total, part) => total + part, 0)
  const exact = parts.map((part) => (sum > 0 ? (whole * part) / sum : whole / parts.length))
  const shares = exact.map(Math.floor)
  const missing = whole - shares.reduce((total, share) => total + share, 0)
  const byFraction = exact.map((value, index) => ({ index, fraction: value - Math.floor(value) }))
  byFraction.sort((a, b) => b.fraction - a.fraction || a.index - b.index)
  for (const { index } of byFraction.slice(0, Math.max(0, missing))) shares[index] = (shares[index] ?? 0) + 1
  return shares
}
