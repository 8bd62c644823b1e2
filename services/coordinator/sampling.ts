import { strict as assert } from 'node:assert'
import { MoeshError } from '../config/errors.ts'
import { DrawKernel } from './draw-kernel.ts'
import { expNegative } from './exp-log.ts'
import { Largest } from './largest.ts'
import { uniform } from './philox.ts'
import type { SamplingOptions } from './request.ts'

/** What the penalties look at: which tokens the prompt has, and how often each was generated. */
export type TokenHistory = {
  readonly prompt: ReadonlySet<number>
  readonly generated: Map<number, number>
}

export function createHistory(promptIds: Iterable<number>): TokenHistory {
  return { prompt: new Set(promptIds), generated: new Map() }
}

export function addGenerated(history: TokenHistory, id: number): void {
  history.generated.set(id, (history.generated.get(id) ?? 0) + 1)
}

/** Whether draws depend on the tokens before. */
export function looksBack({ repetitionPenalty, frequencyPenalty, presencePenalty }: SamplingOptions): boolean {
  return repetitionPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0
}

/** Draws one token at a time; keeps its scratch, so one per thread. */
export type Sampler = {
  /**
   * Chooses a token id. In this order, as vLLM's sampler does it: repetition, frequency and presence penalties and
   * bias; no stop id before `minTokens`; temperature (0: the largest logit, ties to the lowest id, and no more steps);
   * top-k (exactly k, ties by lower id); top-p (the fewest likeliest tokens whose share of what is left reaches p);
   * min-p (at least that fraction of the likeliest token's probability).
   *
   * The result is a pure function of the logits' bits, the options, `position` (in the candidate's output, from 0),
   * `candidate` and the history: sums run in one order, and the random number is keyed, not stateful.
   * `logits` ([vocabulary] f32) stays as it is. Errors: INTERNAL where the logits hold no finite maximum.
   */
  sample(
    logits: Float32Array,
    options: SamplingOptions,
    position: number,
    candidate: number,
    history: TokenHistory,
  ): number
}

export function createSampler(vocabulary: number): Sampler {
  const scratch: Scratch = {
    logits: new Float64Array(vocabulary),
    ids: new Int32Array(vocabulary),
    weights: new Float64Array(vocabulary),
    largest: new Largest(vocabulary),
    massOfBucket: new Float64Array(bucketCount),
    bucketIds: new Int32Array(vocabulary),
    bucketValues: new Float64Array(vocabulary),
  }
  const drawKernel = new DrawKernel(vocabulary)
  return {
    sample: (logits, options, position, candidate, history) => {
      const masksStops = position < options.minTokens && options.stopTokenIds.size > 0
      const isAdjusted = masksStops || hasAdjustments(options)
      if (options.temperature === 0 && !isAdjusted) return best(scratch.largest, logits, vocabulary)
      const share = uniform(options.seed, candidate, position)
      const isNarrowed = options.topK > 0 || options.topP < 1 || options.minP > 0
      if (options.temperature > 0 && !isAdjusted && !isNarrowed) {
        const id = drawKernel.draw(logits, options.temperature, share)
        if (id >= 0) return id
        // A logit that is not a number, or none that is finite: what follows leaves them out, or says so.
      }
      const adjusted = scratch.logits
      if (isAdjusted) {
        adjusted.set(logits)
        adjust(adjusted, options, history)
        if (masksStops) for (const id of options.stopTokenIds) adjusted[id] = Number.NEGATIVE_INFINITY
      }
      if (options.temperature === 0) return best(scratch.largest, adjusted, vocabulary)
      const kept = keep(scratch, isAdjusted ? adjusted : logits, options)
      return draw(scratch, kept, share)
    },
  }
}

/** [vocabulary] each, but where noted. */
type Scratch = {
  /** Of all tokens, after penalties; then of those that may be drawn, beside their ids. */
  readonly logits: Float64Array
  /** What may be drawn, ascending, with its weight (relative to the likeliest token's) beside it. */
  readonly ids: Int32Array
  readonly weights: Float64Array
  readonly largest: Largest
  /** [bucketCount] */
  readonly massOfBucket: Float64Array
  readonly bucketIds: Int32Array
  readonly bucketValues: Float64Array
}

function hasAdjustments(options: SamplingOptions): boolean {
  return looksBack(options) || options.logitBias.size > 0
}

/** Touches only the tokens that were seen or have a bias. */
function adjust(logits: Float64Array, options: SamplingOptions, history: TokenHistory): void {
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = options
  if (repetitionPenalty !== 1) {
    for (const id of history.prompt) repel(logits, id, repetitionPenalty)
    for (const id of history.generated.keys()) if (!history.prompt.has(id)) repel(logits, id, repetitionPenalty)
  }
  if (frequencyPenalty !== 0 || presencePenalty !== 0) {
    for (const [id, count] of history.generated) {
      logits[id] = (logits[id] ?? 0) - frequencyPenalty * count - presencePenalty
    }
  }
  for (const [id, bias] of options.logitBias) logits[id] = (logits[id] ?? 0) + bias
}

/** Keskar et al., "CTRL" (2019), section 4.1, in the form that also lowers negative logits. */
function repel(logits: Float64Array, id: number, penalty: number): void {
  const logit = logits[id] ?? 0
  logits[id] = logit > 0 ? logit / penalty : logit * penalty
}

/** The id of the largest of the first `length` values, ties to the lower one. */
function best(largest: Largest, values: Float32Array | Float64Array, length: number): number {
  largest.select(values, length, 1)
  const id = largest.count === 0 ? -1 : (largest.indices[0] ?? -1)
  if (id >= 0 && Number.isFinite(values[id])) return id
  throw new MoeshError('INTERNAL', `no token can be chosen: the largest logit is ${values[id] ?? 'not a number'}`)
}

/** Fills `ids`, `logits` and `weights` with what may be drawn, ascending by id, and returns how many there are. */
function keep(scratch: Scratch, values: Float32Array | Float64Array, options: SamplingOptions): number {
  const { logits, weights } = scratch
  const scale = 1 / options.temperature
  const isCut = options.topK > 0 && options.topK < values.length
  let kept = isCut ? keepTopK(scratch, values, options.topK) : keepAll(scratch, values)
  const top = logits[best(scratch.largest, logits, kept)] ?? 0
  for (let index = 0; index < kept; index++) weights[index] = expNegative(((logits[index] ?? 0) - top) * scale)
  if (options.topP < 1) kept = keepTopP(scratch, kept, options.topP, top, scale)
  return options.minP > 0 ? keepMinP(scratch, kept, options.minP) : kept
}

function keepAll({ logits, ids }: Scratch, values: Float32Array | Float64Array): number {
  if (logits !== values) logits.set(values)
  for (let id = 0; id < ids.length; id++) ids[id] = id
  return ids.length
}

/** The k largest, ties to the lower id. One pass over the vocabulary; what follows looks at k tokens. */
function keepTopK({ logits, ids, largest }: Scratch, values: Float32Array | Float64Array, topK: number): number {
  largest.select(values, values.length, topK)
  const { count } = largest
  ids.set(largest.indices.subarray(0, count))
  ids.subarray(0, count).sort()
  // `values` may be `logits`: a place is never behind the id that moves there.
  for (let index = 0; index < count; index++) logits[index] = values[ids[index] ?? 0] ?? 0
  return count
}

/**
 * Where the wanted mass is reached can be told without sorting: tokens fall into buckets by how far their logit (over
 * the temperature) lies below the best one; buckets before the boundary are kept whole, and only the bucket that holds
 * it is put in order. Sixty-four buckets for a factor of e leave a few hundred tokens in that one.
 */
const bucketsPerNat = 64
const bucketCount = 64 * bucketsPerNat

/** The last bucket takes all that is less likely than e^-64 of the best token. */
function bucketOf(distance: number): number {
  const bucket = Math.floor(distance * bucketsPerNat)
  return bucket < bucketCount ? bucket : bucketCount - 1
}

function keepTopP(scratch: Scratch, length: number, topP: number, top: number, scale: number): number {
  const { logits, ids, weights, massOfBucket, largest, bucketIds, bucketValues } = scratch
  massOfBucket.fill(0)
  let total = 0
  for (let index = 0; index < length; index++) {
    const weight = weights[index] ?? 0
    const bucket = bucketOf((top - (logits[index] ?? 0)) * scale)
    massOfBucket[bucket] = (massOfBucket[bucket] ?? 0) + weight
    total += weight
  }
  const wanted = topP * total
  let boundary = 0
  let before = 0
  while (boundary < bucketCount - 1 && before + (massOfBucket[boundary] ?? 0) < wanted) {
    before += massOfBucket[boundary] ?? 0
    boundary++
  }

  let inBucket = 0
  for (let index = 0; index < length; index++) {
    const value = logits[index] ?? 0
    if (bucketOf((top - value) * scale) !== boundary) continue
    bucketIds[inBucket] = ids[index] ?? 0
    bucketValues[inBucket] = value
    inBucket++
  }
  largest.select(bucketValues, inBucket, inBucket)
  largest.sort(bucketValues)
  let cutId = -1
  let cutValue = Number.NEGATIVE_INFINITY
  let mass = before
  for (let place = 0; place < largest.count && (place === 0 || mass < wanted); place++) {
    const index = largest.indices[place] ?? 0
    cutId = bucketIds[index] ?? 0
    cutValue = bucketValues[index] ?? 0
    mass += expNegative((cutValue - top) * scale)
  }

  let kept = 0
  for (let index = 0; index < length; index++) {
    const id = ids[index] ?? 0
    const value = logits[index] ?? 0
    if (value < cutValue || (value === cutValue && id > cutId)) continue
    ids[kept] = id
    weights[kept] = weights[index] ?? 0
    kept++
  }
  return kept
}

/** The likeliest token's weight is 1, so the fraction is the bound itself. */
function keepMinP(scratch: Scratch, length: number, minP: number): number {
  const { ids, weights } = scratch
  let kept = 0
  for (let index = 0; index < length; index++) {
    const weight = weights[index] ?? 0
    if (weight < minP) continue
    ids[kept] = ids[index] ?? 0
    weights[kept] = weight
    kept++
  }
  return kept
}

/** Inverse of the cumulative distribution: the first token at which the sum of weights passes `share` of the whole. */
function draw(scratch: Scratch, length: number, share: number): number {
  const { ids, weights } = scratch
  let total = 0
  for (let index = 0; index < length; index++) total += weights[index] ?? 0
  const target = share * total
  let sum = 0
  let last = -1
  for (let index = 0; index < length; index++) {
    const weight = weights[index] ?? 0
    if (weight === 0) continue
    last = ids[index] ?? 0
    sum += weight
    if (sum > target) return last
  }
  assert(last >= 0)
  return last
}
