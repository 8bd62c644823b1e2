import { expect, test } from 'vitest'
import { engineCapacity, kvBytesPerToken } from '../../services/coordinator/capacity.ts'
import type { ModelSpec } from '../../services/model/spec.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'

const pack = testPacks()
const settings = { context: undefined, maxSequences: undefined, maxBatchTokens: undefined, kvMemory: undefined }
const gib = 2 ** 30

/** The demo model with heads as wide as those of a large one. */
async function largeSpec(): Promise<ModelSpec> {
  const { spec } = (await pack(demoCheckpoint, 'f32')).manifest
  const layers = spec.layers.map((layer) => ({
    ...layer,
    attention: { ...layer.attention, heads: 32, kvHeads: 8, headDim: 128 },
  }))
  return { ...spec, contextLength: 32768, layers: Array.from({ length: 12 }, () => layers).flat() }
}

test('the KV cache takes a share of what is free, and no more than the threads can hold', async () => {
  const spec = await largeSpec()
  const bytes = (freeBytes: number, threads: number) =>
    engineCapacity(spec, settings, { freeBytes, threads }).kvTokensMax * kvBytesPerToken(spec)
  expect(bytes(10 * gib, 8) / gib).toBeCloseTo(4, 1)
  // 4 GiB of addresses a thread, less its scratch.
  expect(bytes(1000 * gib, 2) / gib).toBeGreaterThan(7)
  expect(bytes(1000 * gib, 2) / gib).toBeLessThan(8)
  // There are eight KV heads: more threads hold no more.
  expect(bytes(1000 * gib, 32)).toBe(bytes(1000 * gib, 8))
})

test.each([
  { why: 'no room for one block', given: { kvMemory: 1000 }, says: /give it more with --kv-memory/ },
  { why: 'more than two threads can hold', given: { kvMemory: 9 * gib }, says: /more than 2 threads can hold/ },
  { why: "a context beyond the model's", given: { context: 40000 }, says: /beyond the model's 32768/ },
  {
    why: 'a table of blocks beyond all measure',
    given: { maxSequences: 65536, maxBatchTokens: 65536 },
    says: /table of \d+ KV blocks/,
  },
  { why: 'more sequences than rows', given: { maxSequences: 9, maxBatchTokens: 8 }, says: /above --max-batch-tokens/ },
])('$why is refused', async ({ given, says }) => {
  const spec = await largeSpec()
  expect(() => engineCapacity(spec, { ...settings, ...given }, { freeBytes: 20 * gib, threads: 2 })).toThrow(says)
})
