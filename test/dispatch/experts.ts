import { createOutputBuffer, createRowBuffer } from '../../services/dispatch/rows.ts'
import type { ExpertCall, RoutedRows } from '../../services/dispatch/transport.ts'

/** A stand-in for experts' mathematics: simple, exact, different for every layer, expert, row and column. */
export const hidden = 4

export function expertOutput(layer: number, expert: number, row: Float32Array, column: number): number {
  return (row[column] ?? 0) * (expert + 2) + layer * 1000 + column
}

/** What a node does with a call. `wrong` is added to each value. */
export function compute(call: ExpertCall, wrong = 0): void {
  const rows = new Float32Array(call.rows.data.buffer)
  let output = call.outputStart
  let at = 0
  call.experts.forEach((expert, index) => {
    for (let i = 0; i < (call.counts[index] ?? 0); i++) {
      const row = call.rowIndices[at++] ?? 0
      const values = rows.subarray(row * hidden, (row + 1) * hidden)
      for (let column = 0; column < hidden; column++) {
        call.outputs.data[output * hidden + column] = expertOutput(call.layer, expert, values, column) + wrong
      }
      output += 1
    }
  })
}

/** Rows with values of their own, routed as given; outputs are filled with NaN. */
export function routedRows(layer: number, expertIds: readonly (readonly number[])[], salt = 0): RoutedRows {
  const expertsPerToken = expertIds[0]?.length ?? 1
  const rowCount = expertIds.length
  const rows = createRowBuffer('f32', hidden, Math.max(1, rowCount))
  new Float32Array(rows.data.buffer).set(Array.from({ length: rowCount * hidden }, (_, i) => salt + i + 1))
  const outputs = createOutputBuffer(hidden, Math.max(1, rowCount * expertsPerToken))
  outputs.data.fill(Number.NaN)
  return {
    layer,
    rowCount,
    expertsPerToken,
    expertIds: Int32Array.from(expertIds.flat()),
    rows,
    outputs,
    outputRows: new Int32Array(rowCount * expertsPerToken).fill(-1),
  }
}

/** Pairs whose output is not what their expert gives. */
export function wrongPairs(routed: RoutedRows): number[] {
  const values = new Float32Array(routed.rows.data.buffer)
  return Array.from(routed.expertIds.keys()).filter((pair) => {
    const row = Math.floor(pair / routed.expertsPerToken)
    const input = values.subarray(row * hidden, (row + 1) * hidden)
    const at = (routed.outputRows[pair] ?? -1) * hidden
    return input.some(
      (_, column) =>
        routed.outputs.data[at + column] !== expertOutput(routed.layer, routed.expertIds[pair] ?? -1, input, column),
    )
  })
}
