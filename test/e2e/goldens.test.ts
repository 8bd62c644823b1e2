import { describe, expect, test } from 'vitest'
import { findGolden, type Golden, readGolden } from '../support/golden.ts'
import { testPacks } from '../support/packs.ts'
import { type Result, runModel } from '../support/running-model.ts'

/** What transformers computes, computed here: log-probabilities of every position, greedy tokens, experts. */

const cases = [
  'llama',
  'llama_llama3_rope',
  'llama_sharded',
  'llama_tied',
  'mistral_full',
  'mistral_sliding',
  'mixtral',
  'mixtral_sharded_bf16',
  'olmoe',
  'olmoe_clip_norm',
  'qwen3',
  'qwen3_moe',
  'qwen3_moe_mixed_layers',
]

const chunks = [
  { why: 'whole', maxBatchTokens: 512 },
  { why: 'in chunks of 3', maxBatchTokens: 3 },
  { why: 'token by token', maxBatchTokens: 1 },
]

const pack = testPacks()

describe.each(cases)('%s', (name) => {
  const directory = findGolden(name)
  if (directory === null) {
    test.skip(`${name} is not on this machine (it lies in ../shared/goldens)`, () => {})
    return
  }
  test.each(chunks)('equals the reference, its prompts read $why', async ({ maxBatchTokens }) => {
    const golden = readGolden(directory)
    const model = await runModel(await pack(directory, 'f32'), {
      transport: 'shared memory',
      nodes: 1,
      ranks: 2,
      threads: 2,
      maxBatchTokens,
    })
    try {
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
    } finally {
      await model.close()
    }
  })
})

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
