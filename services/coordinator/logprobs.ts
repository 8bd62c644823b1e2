import { MoeshError } from '../config/errors.ts'
import { expNegative, logAtLeastOne } from './exp-log.ts'
import { Largest } from './largest.ts'
import type { TokenLogprobs } from './request.ts'

/** Log-probabilities of one distribution at a time; keeps its scratch, so one per thread. */
export type Logprobs = {
  /**
   * Of the unmodified `logits` ([vocabulary] f32): natural logarithms of their softmax, in f64, rounded to f32 once.
   * `wanted`: 0 the chosen token's alone, k the k likeliest too (likeliest first, ties by lower id), -1 all by token id.
   */
  of(logits: Float32Array, chosen: number, wanted: number): TokenLogprobs
}

export function createLogprobs(vocabulary: number): Logprobs {
  const largest = new Largest(vocabulary)
  return {
    of: (logits, chosen, wanted) => {
      const logSum = logSumExp(logits)
      const result: TokenLogprobs = {
        chosen: Math.fround((logits[chosen] ?? Number.NaN) - logSum),
        rank: rankOf(logits, chosen),
        top: [],
        all: null,
      }
      if (wanted > 0) {
        largest.select(logits, vocabulary, wanted)
        largest.sort(logits)
        for (let place = 0; place < largest.count; place++) {
          const id = largest.indices[place] ?? 0
          result.top.push({ id, logprob: Math.fround((logits[id] ?? 0) - logSum) })
        }
      }
      // Storing into the array rounds to f32.
      if (wanted === -1) result.all = logits.map((logit) => logit - logSum)
      return result
    },
  }
}

/**
 * ln(sum(e^logit)) in f64, summed in ascending token id: the same bits wherever the same logits lie.
 * Errors: INTERNAL where the largest logit is not finite, which no healthy model produces.
 */
export function logSumExp(logits: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] ?? 0
    if (logit > largest) largest = logit
  }
  if (!Number.isFinite(largest)) throw new MoeshError('INTERNAL', `the model's largest logit is ${largest}`)
  let sum = 0
  for (let id = 0; id < logits.length; id++) sum += expNegative((logits[id] ?? 0) - largest)
  return largest + logAtLeastOne(sum)
}

/** 1 for the likeliest; of equal logits the lower id comes first. */
export function rankOf(logits: Float32Array, chosen: number): number {
  const own = logits[chosen] ?? Number.NaN
  let rank = 1
  for (let id = 0; id < chosen; id++) if ((logits[id] ?? 0) >= own) rank++
  for (let id = chosen + 1; id < logits.length; id++) if ((logits[id] ?? 0) > own) rank++
  return rank
}
