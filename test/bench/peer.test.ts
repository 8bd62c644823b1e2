import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { ensureCheckpoint } from '../../bench/checkpoint.ts'
import { ensureGguf } from '../../bench/gguf.ts'
import { peerModules } from '../../bench/peer-binding.ts'
import { LlamaTarget } from '../../bench/peer-llama.ts'
import { randomTokens, streamFor } from '../../bench/random.ts'
import { testPacks } from '../support/packs.ts'
import { runModel } from '../support/running-model.ts'
import { small } from './small-shape.ts'

/** What the benchmark compares must be the same model: the peer's reading of our GGUF against our own engine. */

const directory = mkdtempSync(join(tmpdir(), 'moesh-bench-test-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const pack = testPacks()

const isInstalled = existsSync(peerModules)
if (!isInstalled) process.stderr.write('\n!!! SKIPPED: tests against llama.cpp; "npm run bench" installs it !!!\n')

test.skipIf(!isInstalled).each([
  { format: 'Q8_0', deviationMax: 0.01, correlationMin: 0.999 },
  { format: 'Q4_0', deviationMax: 0.1, correlationMin: 0.98 },
] as const)('llama.cpp reads the same model from $format', async ({ format, deviationMax, correlationMin }) => {
  const checkpoint = ensureCheckpoint(directory, small, 1)
  const prompt = randomTokens(streamFor(1, 'prompt'), 24, small.vocabulary)
  const model = await runModel(await pack(checkpoint, 'f32'), {
    transport: 'shared memory',
    nodes: 1,
    ranks: 1,
    threads: 1,
  })
  const peer = await LlamaTarget.open(ensureGguf(directory, checkpoint, small, format), small.vocabulary, 1, 1)
  try {
    const result = await model.generate({ promptIds: prompt, sampling: { maxTokens: 1 }, output: { logprobs: -1 } })
    const ours = result.tokens[0]?.[0]?.logprobs?.all ?? new Float32Array()
    const theirs = await peer.logprobs(prompt)
    expect(ours).toHaveLength(small.vocabulary)
    expect(meanDeviation(ours, theirs)).toBeLessThan(deviationMax)
    expect(correlation(ours, theirs)).toBeGreaterThan(correlationMin)
  } finally {
    await model.close()
    await peer.close()
  }
})

function meanDeviation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += Math.abs((a[i] ?? 0) - (b[i] ?? 0))
  return sum / a.length
}

function correlation(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const count = a.length
  const mean = (values: ArrayLike<number>) => Array.from(values).reduce((sum, value) => sum + value, 0) / count
  const [meanA, meanB] = [mean(a), mean(b)]
  let [products, squaresA, squaresB] = [0, 0, 0]
  for (let i = 0; i < count; i++) {
    const [x, y] = [(a[i] ?? 0) - meanA, (b[i] ?? 0) - meanB]
    products += x * y
    squaresA += x * x
    squaresB += y * y
  }
  return products / Math.sqrt(squaresA * squaresB)
}
