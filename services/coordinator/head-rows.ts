import type { TokenLogprobs } from './request.ts'
import type { Sequence } from './sequence.ts'
import type { Item } from './team/attention.ts'
import { drawToken, noLogprobs, resultWords, type StepBuffers } from './team/layout.ts'
import type { HeadRow } from './team/team.ts'

/** What a step asks of the head, and how its answers are read. */

/** The rows of one sequence in a step; the last of them are of tokens that are guessed to follow. */
export type StepItem = Item & { sequence: Sequence; guesses: readonly number[] }

/** A row of which the head's output is wanted, and what for. */
export type Wanted = {
  row: number
  /** Of the token: in the prompt, or in the output of the sequence. */
  position: number
  sequence: Sequence
  draws: boolean
  /** The token of the row, where it was guessed: if another was drawn, the row is worth nothing. */
  guess: number | null
}

/** The tokens that follow an item's rows: one, and one behind each guess. */
export function nextTokens({ sequence, row, count, guesses }: StepItem): [Wanted, ...Wanted[]] {
  const position = sequence.tokens.length - sequence.request.request.promptIds.length
  const first = row + count - 1 - guesses.length
  return [
    { row: first, position, sequence, draws: true, guess: null },
    ...guesses.map((guess, i) => ({ row: first + 1 + i, position: position + 1 + i, sequence, draws: true, guess })),
  ]
}

/** Its sequence runs, and what was drawn is what the row was computed for. */
export function isWanted({ sequence, position, guess }: Wanted): boolean {
  if (sequence.state === 'ended') return false
  const { tokens, request } = sequence
  return guess === null || (tokens.length === request.request.promptIds.length + position && tokens.at(-1) === guess)
}

/** Of a slice whose rows follow each other, those that may be wanted by then: rows behind a wrong guess are not. */
export function stillWanted(slice: readonly Wanted[]): Wanted[] {
  let before: Wanted | null = null
  return slice.filter((want) => {
    // What the row before draws is not known yet.
    const follows = want.guess !== null && before?.sequence === want.sequence && before.position + 1 === want.position
    if (!follows && !isWanted(want)) return false
    before = want
    return true
  })
}

/**
 * What is wanted of the head, where the step only decodes: it can be told beforehand then, and spares the threads a wait
 * for this one.
 */
export function headOfDecode(items: readonly StepItem[]): Wanted[] {
  const decodes = ({ sequence, start, count, guesses }: StepItem) =>
    sequence.request.promptTokens === null && count === 1 + guesses.length && start + 1 === sequence.tokens.length
  return items.every(decodes) ? items.flatMap(nextTokens) : []
}

export function headRow({ row, position, sequence, draws }: Wanted): HeadRow {
  const { output } = sequence.request.request
  const { slot } = sequence
  const wanted = draws ? output.logprobs : output.promptLogprobs
  return {
    row,
    slot: slot ?? 0,
    target: draws ? drawToken : (sequence.tokens[position + 1] ?? 0),
    position,
    top: wanted ?? noLogprobs,
  }
}

/** Log-probabilities of result `index` of the head slice; null where none were wanted. */
export function readLogprobs(
  { results, chosen, topIds, topLogprobs, logits }: StepBuffers,
  index: number,
  wanted: number | null,
): TokenLogprobs | null {
  if (wanted === null) return null
  const slice = chosen.length
  const at = index * resultWords.size
  const topAt = index * (topIds.length / slice)
  const vocabulary = logits.length / slice
  return {
    chosen: chosen[index] ?? 0,
    rank: results[at + resultWords.rank] ?? 0,
    top: Array.from({ length: results[at + resultWords.topCount] ?? 0 }, (_, i) => ({
      id: topIds[topAt + i] ?? 0,
      logprob: topLogprobs[topAt + i] ?? 0,
    })),
    all: wanted === -1 ? Float32Array.from(logits.subarray(index * vocabulary, (index + 1) * vocabulary)) : null,
  }
}
