import { readFileSync } from 'node:fs'
import { z } from 'zod'

const ms = z.number().nonnegative()

/**
 * What a call costs on one rank, as a plane: experts are read from memory once a call, rows are multiplied. A row is one
 * token's part for one expert.
 */
export const expertCostSchema = z.strictObject({
  perCallMs: ms,
  perRowMs: ms,
  perExpertMs: ms.default(0),
})
export type ExpertCost = z.infer<typeof expertCostSchema>

/** A cost file; what else stands in it says where it comes from. */
const costFileSchema = expertCostSchema.extend({ measured: z.record(z.string(), z.unknown()).optional() })
export type CostFile = z.infer<typeof costFileSchema>

/** Errors: those of reading a file, and of a file that holds something else. */
export function readCost(file: string): CostFile {
  return costFileSchema.parse(JSON.parse(readFileSync(file, 'utf8')))
}

export function callMs({ perCallMs, perExpertMs, perRowMs }: ExpertCost, experts: number, rows: number): number {
  return perCallMs + experts * perExpertMs + rows * perRowMs
}

/** Median time of a call that wants `rows` rows in all of `experts` experts. */
export type CostSample = { experts: number; rows: number; ms: number }

/**
 * The plane that misses the samples least, by the squares of the relative errors: a call of 1 ms counts as much as one
 * of 100. Costs are never negative: of all ways to leave some out, the best one whose others are positive is taken,
 * which with three is quicker done than explained.
 */
export function fitCost(samples: readonly CostSample[]): ExpertCost {
  const columns = samples.map(({ experts, rows, ms }) => [1 / ms, experts / ms, rows / ms])
  let best: number[] = [0, 0, 0]
  let least = Number.POSITIVE_INFINITY
  for (let used = 1; used < 8; used++) {
    const indices = [0, 1, 2].filter((index) => used & (1 << index))
    const solution = solve(
      indices.map((i) => indices.map((j) => columns.reduce((sum, row) => sum + (row[i] ?? 0) * (row[j] ?? 0), 0))),
      indices.map((i) => columns.reduce((sum, row) => sum + (row[i] ?? 0), 0)),
    )
    if (solution === null || solution.some((value) => value < 0)) continue
    const cost = [0, 0, 0]
    for (const [at, index] of indices.entries()) cost[index] = solution[at] ?? 0
    const error = columns.reduce(
      (sum, row) => sum + (row.reduce((total, value, index) => total + value * (cost[index] ?? 0), 0) - 1) ** 2,
      0,
    )
    if (error < least) [best, least] = [cost, error]
  }
  const [perCallMs = 0, perExpertMs = 0, perRowMs = 0] = best
  return { perCallMs, perExpertMs, perRowMs }
}

/** Gauss elimination with pivots; null where the equations say nothing about an unknown. */
function solve(matrix: number[][], right: number[]): number[] | null {
  const size = right.length
  const rows = matrix.map((row, index) => [...row, right[index] ?? 0])
  for (let column = 0; column < size; column++) {
    let pivot = column
    for (let row = column + 1; row < size; row++) {
      if (Math.abs(rows[row]?.[column] ?? 0) > Math.abs(rows[pivot]?.[column] ?? 0)) pivot = row
    }
    const pivotRow = rows[pivot] ?? []
    const head = pivotRow[column] ?? 0
    if (Math.abs(head) < 1e-12) return null
    rows[pivot] = rows[column] ?? []
    rows[column] = pivotRow
    for (const [row, values] of rows.entries()) {
      if (row === column) continue
      const factor = (values[column] ?? 0) / head
      for (let at = column; at <= size; at++) values[at] = (values[at] ?? 0) - factor * (pivotRow[at] ?? 0)
    }
  }
  return rows.map((row, index) => (row[size] ?? 0) / (row[index] ?? 1))
}
