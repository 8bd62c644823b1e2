import { describe, test } from 'vitest'
import { compareModel } from '../support/compare-golden.ts'
import { goldenDirectory, readGolden } from '../support/golden.ts'
import { testPacks } from '../support/packs.ts'
import { runModel } from '../support/running-model.ts'

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
  const directory = goldenDirectory(name)
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
      await compareModel(golden, model)
    } finally {
      await model.close()
    }
  })
})
