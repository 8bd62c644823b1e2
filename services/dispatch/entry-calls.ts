import type { RowGroups } from './row-groups.ts'
import type { OutputBuffer } from './rows.ts'
import type { ExpertCall, RoutedRows } from './transport.ts'

/** What a node is asked for entries of `RowGroups`. */

/** Entries from … to-1, which follow each other: outputs go to where they belong. */
export function firstCall(groups: RowGroups, routed: RoutedRows, from: number, to: number): ExpertCall {
  const start = groups.rowStart[from] ?? 0
  return {
    layer: routed.layer,
    experts: groups.entryExpert.subarray(from, to),
    counts: groups.entryRows.subarray(from, to),
    rowIndices: groups.rowIndices.subarray(start, groups.rowStart[to] ?? 0),
    rows: routed.rows,
    outputs: routed.outputs,
    outputStart: start,
  }
}

/** Any entries, ascending by expert: `rows` outputs go to a buffer of their own, in the order of the entries. */
export function repeatedCall(
  groups: RowGroups,
  routed: RoutedRows,
  entries: readonly number[],
  rows: number,
  outputs: OutputBuffer,
): ExpertCall {
  const experts: number[] = []
  const counts: number[] = []
  const rowIndices = new Int32Array(rows)
  let at = 0
  for (const entry of entries) {
    const expert = groups.entryExpert[entry] ?? 0
    const count = groups.entryRows[entry] ?? 0
    // An expert may stand in two entries, of nodes that both failed: a call names it once.
    if (experts.at(-1) === expert) counts[counts.length - 1] = (counts.at(-1) ?? 0) + count
    else {
      experts.push(expert)
      counts.push(count)
    }
    const start = groups.rowStart[entry] ?? 0
    rowIndices.set(groups.rowIndices.subarray(start, start + count), at)
    at += count
  }
  return {
    layer: routed.layer,
    experts: Int32Array.from(experts),
    counts: Int32Array.from(counts),
    rowIndices,
    rows: routed.rows,
    outputs,
    outputStart: 0,
  }
}
