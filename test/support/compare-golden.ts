import { expect } from 'vitest'
import type { Golden } from './golden.ts'
import type { Result, RunningModel } from './running-model.ts'

/** ln(softmax) of a row of reference logits, in f64. */
function logSoftmax(logits: Float32Array): Float64Array {
  const largest = logits.reduce((max, value) => Math.max(max, value), Number.NEGATIVE_INFINITY)
  const sum = logits.reduce((total, value) => total + Math.exp(value - largest), 0)
  return Float64Array.from(logits, (value) => value - largest - Math.log(sum))
}

function largestDifference(logprobs: Float32Array | null | undefined, logits: Float32Array): number {
  if (!logprobs) return Number.POSITIVE_INFINITY
  const expected = logSoftmax(logits)
  expect(logprobs.length).toBe(expected.length)
  return logprobs.reduce((max, value, i) => Math.max(max, Math.abs(value - (expected[i] ?? 0))), 0)
}

/** Distributions after every position of the prompt and of the continuation. */
function compareLogprobs(golden: Golden, index: number, result: Result): void {
  const prompt = golden.floats(`logits.${index}`)
  for (let position = 0; position + 1 < prompt.rows; position++) {
    const row = prompt.data.subarray(position * prompt.columns, (position + 1) * prompt.columns)
    const difference = largestDifference(result.prompt?.[position + 1]?.logprobs?.all, row)
    expect(difference, `prompt ${index}, position ${position}`).toBeLessThan(golden.logitTolerance)
  }
  const greedy = golden.floats(`greedy_logits.${index}`)
  for (let step = 0; step < greedy.rows; step++) {
    const row = greedy.data.subarray(step * greedy.columns, (step + 1) * greedy.columns)
    const difference = largestDifference(result.tokens[0]?.[step]?.logprobs?.all, row)
    expect(difference, `prompt ${index}, step ${step}`).toBeLessThan(golden.logitTolerance)
  }
}

/** Which experts each position of the prompt chose, and their weights. */
function compareExperts(golden: Golden, index: number, result: Result): void {
  for (const layer of golden.moeLayers) {
    const ids = golden.ints(`experts.${index}.${layer}`)
    const weights = golden.floats(`router_weights.${index}.${layer}`)
    for (let position = 0; position < ids.rows; position++) {
      const from = position * ids.columns
      const trace = result.prompt?.[position]?.experts?.find((entry) => entry.layer === layer)
      expect(trace?.expertIds, `layer ${layer}, position ${position}`).toEqual([
        ...ids.data.subarray(from, from + ids.columns),
      ])
      for (const [k, weight] of (trace?.weights ?? []).entries()) {
        expect(weight).toBeCloseTo(weights.data[from + k] ?? 0, 4)
      }
    }
  }
}

/** All prompts of a golden, one after the other: greedy tokens, log-probabilities and chosen experts. */
export async function compareModel(golden: Golden, model: RunningModel): Promise<void> {
  for (const [index, prompt] of golden.prompts.entries()) {
    const result = await model.generate({
      promptIds: prompt.ids,
      sampling: { maxTokens: prompt.greedy.length },
      output: { logprobs: -1, promptLogprobs: -1, expertTrace: true, promptExpertTrace: true },
    })
    expect(result.tokens[0]?.map(({ id }) => id)).toEqual(prompt.greedy)
    compareLogprobs(golden, index, result)
    compareExperts(golden, index, result)
  }
}
