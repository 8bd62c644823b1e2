import assert from 'node:assert/strict'

export type Summary = { min: number; median: number; max: number }

export function summarise(values: readonly number[]): Summary {
  assert(values.length > 0)
  const sorted = values.toSorted((a, b) => a - b)
  const middle = (sorted.length - 1) / 2
  const at = (index: number) => sorted[index] ?? Number.NaN
  return { min: at(0), median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2, max: at(sorted.length - 1) }
}

/** A measurement, and how many cores others used meanwhile: null where nobody knows. */
export type Measured = { result: number; othersCores: number | null }

export type Pairs = {
  ours: number[]
  peer: number[]
  /** The most cores that others used during a measurement that counts; null where nobody knows. */
  othersCores: number | null
  /** Pairs that were measured again because others disturbed them. */
  repeated: number
}

export type PairOptions = {
  pairs: number
  /** Above it a pair does not count, as long as there are repetitions left: twice as many as pairs. */
  othersCoresMax: number
  ours: () => Promise<Measured>
  peer: () => Promise<Measured>
  onPair?: (ours: Measured, peer: Measured, counts: boolean) => void
}

/**
 * Measures both sides alternately, after a run of each that does not count. Who begins changes from pair to pair: a
 * machine that becomes slower or faster meanwhile favours none.
 */
export async function measurePairs({ pairs, othersCoresMax, ours, peer, onPair }: PairOptions): Promise<Pairs> {
  await ours()
  await peer()
  const result: Pairs = { ours: [], peer: [], othersCores: null, repeated: 0 }
  for (let pair = 0; result.ours.length < pairs; pair++) {
    const oursFirst = pair % 2 === 0
    const first = await (oursFirst ? ours : peer)()
    const second = await (oursFirst ? peer : ours)()
    const [our, theirs] = oursFirst ? [first, second] : [second, first]
    const others = Math.max(our.othersCores ?? 0, theirs.othersCores ?? 0)
    const counts = others <= othersCoresMax || result.repeated >= 2 * pairs
    onPair?.(our, theirs, counts)
    if (!counts) {
      result.repeated++
      continue
    }
    result.ours.push(our.result)
    result.peer.push(theirs.result)
    if (our.othersCores !== null) result.othersCores = Math.max(result.othersCores ?? 0, others)
  }
  return result
}

/** `ratio` is taken pair by pair, since both of a pair ran in the same minute. */
export function summarisePairs({ ours, peer }: Pick<Pairs, 'ours' | 'peer'>): {
  ours: Summary
  peer: Summary
  ratio: Summary
} {
  assert(ours.length === peer.length)
  return {
    ours: summarise(ours),
    peer: summarise(peer),
    ratio: summarise(ours.map((value, pair) => value / (peer[pair] ?? Number.NaN))),
  }
}
