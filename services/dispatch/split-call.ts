import assert from 'node:assert/strict'
import type { ExpertCall } from './transport.ts'

/** Cuts a call so that no part has more than `pairsMax` pairs; an expert's rows may come to lie in two parts. */
export function splitCall(call: ExpertCall, pairsMax: number): ExpertCall[] {
  const pairs = call.rowIndices.length
  if (pairs <= pairsMax) return [call]
  const parts: ExpertCall[] = []
  let expertIndex = 0
  let takenOfExpert = 0
  for (let from = 0; from < pairs; from += pairsMax) {
    const to = Math.min(pairs, from + pairsMax)
    const experts: number[] = []
    const counts: number[] = []
    for (let left = to - from; left > 0; ) {
      const restOfExpert = (call.counts[expertIndex] ?? 0) - takenOfExpert
      assert(restOfExpert > 0, 'the counts add up to the rows')
      const taken = Math.min(left, restOfExpert)
      experts.push(call.experts[expertIndex] ?? -1)
      counts.push(taken)
      left -= taken
      takenOfExpert += taken
      if (taken === restOfExpert) {
        expertIndex += 1
        takenOfExpert = 0
      }
    }
    parts.push({
      layer: call.layer,
      experts: Int32Array.from(experts),
      counts: Int32Array.from(counts),
      rowIndices: call.rowIndices.subarray(from, to),
      rows: call.rows,
      outputs: call.outputs,
      outputStart: call.outputStart + from,
    })
  }
  return parts
}
