import assert from 'node:assert/strict'

export type Summary = { min: number; median: number; max: number }

export function summarise(values: readonly number[]): Summary {
  assert(values.length > 0)
  const sorted = values.toSorted((a, b) => a - b)
  const middle = (sorted.length - 1) / 2
  const at = (index: number) => sorted[index] ?? Number.NaN
  return { min: at(0), median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2, max: at(sorted.length - 1) }
}

export type Pairs = { ours: number[]; peer: number[] }

/**
 * Measures both sides alternately, `pairs` times each, after a run of each that does not count. Who begins changes from
 * pair to pair: a machine that becomes slower or faster meanwhile favours none.
 */
export async function measurePairs(
  pairs: number,
  ours: () => Promise<number>,
  peer: () => Promise<number>,
  onPair: (ours: number, peer: number) => void = () => {},
): Promise<Pairs> {
  await ours()
  await peer()
  const result: Pairs = { ours: [], peer: [] }
  for (let pair = 0; pair < pairs; pair++) {
    const sides = pair % 2 === 0 ? (['ours', 'peer'] as const) : (['peer', 'ours'] as const)
    for (const side of sides) result[side].push(await (side === 'ours' ? ours : peer)())
    onPair(result.ours.at(-1) ?? Number.NaN, result.peer.at(-1) ?? Number.NaN)
  }
  return result
}

/** `ratio` is taken pair by pair, since both of a pair ran in the same minute. */
export function summarisePairs({ ours, peer }: Pairs): { ours: Summary; peer: Summary; ratio: Summary } {
  assert(ours.length === peer.length)
  return {
    ours: summarise(ours),
    peer: summarise(peer),
    ratio: summarise(ours.map((value, pair) => value / (peer[pair] ?? Number.NaN))),
  }
}
