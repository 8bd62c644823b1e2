import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ensureCheckpoint } from '../../bench/checkpoint.ts'
import type { BenchShape } from '../../bench/shape.ts'
import { extendNames, findableBlocks } from '../../services/coordinator/block-names.ts'
import type { TokenOutput } from '../../services/coordinator/request.ts'
import type { RequestCounters } from '../../services/coordinator/request-counters.ts'
import { type WeightFormat, weightFormats } from '../../services/model/format.ts'
import { goldenDirectory } from '../support/golden.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'
import { type Result, type RunningModel, runModel, type TestRequest, type Topology } from '../support/running-model.ts'

/**
 * The promise of the same bits, and its only owner: a request's tokens and log-probabilities are equal to the bit in
 * every row of this table. To vary another thing, add a row.
 */

type Variation = { why: string; neighbours?: number } & Partial<Topology>

const variations: Variation[] = [
  { why: 'two ranks', ranks: 2 },
  { why: 'five ranks', ranks: 5 },
  { why: 'two threads of the coordinator', threads: 2 },
  { why: 'three threads of the coordinator', threads: 3 },
  { why: 'two nodes', nodes: 2, ranks: 2 },
  { why: 'gRPC', transport: 'gRPC' },
  { why: 'three nodes over gRPC, two replicas, two ranks each', transport: 'gRPC', nodes: 3, ranks: 2, replicas: 2 },
  { why: 'experts on the own thread', transport: 'own threads' },
  {
    why: 'experts on two of three own threads, chunks of 7',
    transport: 'own threads',
    threads: 3,
    ranks: 2,
    maxBatchTokens: 7,
  },
  { why: 'chunks of 3', maxBatchTokens: 3 },
  { why: 'token by token', maxBatchTokens: 1 },
  { why: 'chunks of 7 over gRPC, five nodes', maxBatchTokens: 7, transport: 'gRPC', nodes: 5 },
  { why: 'a batch with seven other requests', neighbours: 7, ranks: 2, threads: 2 },
  {
    why: 'seven other requests, chunks of 16, over gRPC',
    neighbours: 7,
    maxBatchTokens: 16,
    transport: 'gRPC',
    nodes: 2,
  },
  {
    why: 'seven other requests, experts on three own threads, the rest on two',
    neighbours: 7,
    transport: 'own threads',
    threads: 2,
    ranks: 3,
  },
  { why: 'a KV cache so small that sequences lose their place', neighbours: 7, kvTokens: 192 },
]

/** Widths that 128 divides: `int4` has blocks of 128 then, whose kernel treats the last row of an odd count apart. */
const wide: BenchShape = {
  name: 'wide',
  hidden: 256,
  heads: 4,
  layers: 2,
  experts: 8,
  expertsPerToken: 3,
  expertInner: 128,
  vocabulary: 512,
  contextLength: 512,
  ropeTheta: 10000,
  normEps: 1e-5,
}
const wideDirectory = mkdtempSync(join(tmpdir(), 'moesh-wide-'))
afterAll(() => rmSync(wideDirectory, { recursive: true, force: true }))

const models = [
  { name: 'tales-moe', directory: demoCheckpoint },
  { name: 'olmoe with blocks of 128', directory: ensureCheckpoint(wideDirectory, wide, 1) },
  { name: 'olmoe', directory: goldenDirectory('olmoe') },
  { name: 'mixtral', directory: goldenDirectory('mixtral') },
  { name: 'mistral with a window', directory: goldenDirectory('mistral_sliding') },
  { name: 'qwen3_moe with dense layers', directory: goldenDirectory('qwen3_moe_mixed_layers') },
  { name: 'qwen3 (dense)', directory: goldenDirectory('qwen3') },
]

const single: Topology = { transport: 'shared memory', nodes: 1, ranks: 1, threads: 1 }

/** Every log-probability of a greedy one, a drawn one, and one whose candidates begin with a copy of its prompt. */
const requests: TestRequest[] = [
  {
    promptIds: [58, 229, 7, 270, 176, 31, 99, 204, 18, 5, 77, 130, 241, 66, 8, 9, 150, 33, 61, 210],
    sampling: { maxTokens: 12 },
    output: { logprobs: -1, promptLogprobs: -1, expertTrace: true },
  },
  {
    promptIds: [40, 17, 222, 133, 6],
    sampling: { maxTokens: 12, temperature: 0.9, topP: 0.95, topK: 50, seed: 42n, repetitionPenalty: 1.1 },
    output: { logprobs: 5 },
  },
  {
    promptIds: Array.from({ length: 40 }, (_, i) => 5 + ((i * 53) % 250)),
    candidates: 3,
    sampling: { maxTokens: 6, temperature: 1, seed: 7n },
  },
]

function neighbour(index: number): TestRequest {
  return {
    promptIds: Array.from({ length: 1 + index * 9 }, (_, i) => 5 + ((i * 37 + index * 11) % 250)),
    sampling: { maxTokens: 3 + index * 2, temperature: index % 2, seed: BigInt(index) },
  }
}

const pack = testPacks()

describe.each(models)('$name', ({ directory }) => {
  describe.each(weightFormats)('%s', (format: WeightFormat) => {
    let reference: string[] = []

    beforeAll(async () => {
      reference = (await run(directory, format, { why: 'alone' })).map(bits)
    })

    test.each(variations)('$why', async (variation) => {
      const results = await run(directory, format, variation)
      expect(results.map(bits)).toEqual(reference.slice(0, results.length))
    })
  })
})

/** Longer than what is projected at once, and odd. */
const longPrompt: TestRequest = {
  promptIds: Array.from({ length: 301 }, (_, i) => 5 + ((i * 53) % 250)),
  sampling: { maxTokens: 2 },
  output: { logprobs: -1, promptLogprobs: 1 },
}

describe.each(models.filter(({ name }) => /blocks|dense layers/.test(name)))('$name', ({ directory }) => {
  test.each(weightFormats)('%s: a prompt of 301 tokens, whole and in chunks of 7', async (format) => {
    const whole = await run(directory, format, { why: 'alone', threads: 2 }, [longPrompt])
    const chunks = await run(directory, format, { why: 'chunks of 7', maxBatchTokens: 7 }, [longPrompt])
    expect(chunks.map(bits)).toEqual(whole.map(bits))
  })
})

const chatIds = Array.from({ length: 75 }, (_, i) => 5 + ((i * 31) % 240))
const chatTurns = {
  first: {
    promptIds: chatIds,
    sampling: { maxTokens: 30, temperature: 0.8, seed: 3n, repetitionPenalty: 1.2, frequencyPenalty: 0.3 },
    output: { logprobs: 2 },
  },
  other: {
    promptIds: [...chatIds.slice(0, 70), 9, 8, 7],
    candidates: 3,
    sampling: { maxTokens: 10, temperature: 1, seed: 4n, presencePenalty: 0.5 },
  },
} satisfies Record<string, TestRequest>

describe.each(models.filter(({ name }) => /tales|window|dense layers/.test(name)))('$name', ({ directory }) => {
  test.each(weightFormats)('%s: what is found in the KV cache', async (format) => {
    const alone = async (request: TestRequest) => (await run(directory, format, { why: 'alone' }, [request]))[0]
    const { first, other } = chatTurns
    const answer = (await alone(first))?.tokens[0]?.map(({ id }) => id) ?? []
    const next = { ...first, promptIds: [...first.promptIds, ...answer, 11, 12, 13] }
    const turns = [first, other, next, first, next]
    const expected: (Result | undefined)[] = []
    for (const turn of turns) expected.push(await alone(turn))

    const together = await run(directory, format, { why: 'one after the other', threads: 2 }, turns)
    expect(together.map(bits)).toEqual(expected.map((result) => result && bits(result)))
    expect(together.map(({ usage }) => usage.cachedTokens)).toEqual([0, 64, 64, 64, 96])
    const small = { why: 'in a small cache', neighbours: 7, kvTokens: 320 }
    const { results: crowded, counters } = await runCounted(directory, format, small, turns)
    expect(counters.preempted).toBeGreaterThan(0)
    expect(crowded.map(bits)).toEqual(expected.map((result) => result && bits(result)))
  })
})

/** Tokens that a request is held to. */
const only = (...ids: number[]) => new Map(ids.map((id) => [id, 40]))

/** Models repeat themselves after a while, and any does that has three tokens to choose from. */
const repetitive: TestRequest[] = [
  { promptIds: chatIds, sampling: { maxTokens: 120 }, output: { logprobs: 3, expertTrace: true } },
  {
    promptIds: [...chatIds.slice(0, 40), ...chatIds.slice(0, 20)],
    candidates: 2,
    sampling: { maxTokens: 60, temperature: 1, seed: 5n, logitBias: only(40, 41, 42) },
    output: { logprobs: 0 },
  },
  // Its end may be guessed, too.
  {
    promptIds: chatIds.slice(0, 9),
    sampling: {
      ...{ maxTokens: 200, temperature: 0.8, seed: 6n, logitBias: only(50, 51, 52) },
      ...{ minTokens: 40, stopTokenIds: new Set([52]) },
    },
    output: { logprobs: 0 },
  },
  // A draw that looks back: its tokens are not guessed.
  { promptIds: chatIds, sampling: { maxTokens: 60, frequencyPenalty: 0.2 }, output: { logprobs: 0 } },
]

const guessing: Variation[] = [
  { why: 'alone', speculate: 5 },
  {
    why: 'chunks of 7, experts on own threads',
    ...{ speculate: 64, maxBatchTokens: 7, transport: 'own threads', threads: 2, ranks: 2 },
  },
  { why: 'seven other requests over gRPC', speculate: 64, neighbours: 7, transport: 'gRPC', nodes: 2 },
]

describe.each(models.filter(({ name }) => /tales|window|dense layers/.test(name)))('$name', ({ directory }) => {
  test.each(weightFormats)('%s: guessed tokens, right and wrong ones', async (format) => {
    const plain = await run(directory, format, { why: 'alone' }, repetitive)
    // What was guessed right is found in the KV cache by the next turn, and continued.
    const answer = plain[0]?.tokens[0]?.map(({ id }) => id) ?? []
    const next = { promptIds: [...chatIds, ...answer, 11, 12], sampling: { maxTokens: 20 }, output: { logprobs: 3 } }
    const turns: TestRequest[] = [...repetitive, next]
    const expected = [...plain, ...(await run(directory, format, { why: 'alone' }, [next]))].map(bits)
    for (const variation of guessing) {
      const { results, counters } = await runCounted(directory, format, variation, turns)
      expect(results.map(bits), variation.why).toEqual(expected)
      expect(counters.guessedRight, variation.why).toBeGreaterThan(0)
      expect(counters.guessedTokens, variation.why).toBeGreaterThan(counters.guessedRight)
    }
    const small = { why: 'in a small cache', speculate: 20, neighbours: 7, kvTokens: 320 }
    const { results, counters } = await runCounted(directory, format, small, turns)
    expect(results.map(bits)).toEqual(expected)
    expect(counters.guessedRight).toBeGreaterThan(0)
    expect(counters.preempted).toBeGreaterThan(0)
  })

  /** More rows than the head computes at once, and beside a prompt that is read in many steps. */
  test('every right guess spares a step', async () => {
    const loop = (prompt: number[]): TestRequest => ({
      promptIds: prompt,
      sampling: { maxTokens: 150, logitBias: only(40) },
    })
    const prompts = Array.from({ length: 8 }, (_, i) => chatIds.slice(i, 2 * i + 5))
    const asked = [...prompts.slice(1), Array.from({ length: 300 }, (_, i) => 5 + ((i * 53) % 250))].map(loop)
    for (const [speculate, maxBatchTokens] of [
      [8, 600],
      [64, 600],
      [8, 77],
    ] as const) {
      const model = await runModel(await pack(directory, 'int8'), { ...single, speculate, maxBatchTokens })
      try {
        const results = await Promise.all(asked.map(model.generate))
        for (const { tokens } of results) expect(tokens[0]?.map(({ id }) => id)).toEqual(Array(150).fill(40))
        expect(model.counters.guessedTokens).toBeGreaterThan(asked.length * 50)
        expect(model.counters.guessedRight).toBe(model.counters.guessedTokens)
      } finally {
        await model.close()
      }
    }
  })
})

describe.each(models.filter(({ name }) => /tales|window|dense layers/.test(name)))('$name', ({ directory }) => {
  test.each(weightFormats)('%s: blocks of the KV cache that another coordinator computed', async (format) => {
    const request: TestRequest = {
      promptIds: Array.from({ length: 150 }, (_, i) => 5 + ((i * 31) % 240)),
      sampling: { maxTokens: 8, temperature: 0.7, seed: 9n },
      output: { logprobs: -1 },
    }
    const names: string[] = []
    extendNames(names, request.promptIds, '', findableBlocks(request.promptIds.length))
    expect(names).toHaveLength(4)
    const source = await runModel(await pack(directory, format), { ...single, threads: 3 })
    const target = await runModel(await pack(directory, format), { ...single, transport: 'own threads', threads: 2 })
    try {
      const computed = await source.generate(request)
      for (const name of names) {
        const block = await source.kv.read(name)
        expect(block?.byteLength).toBe(target.kv.blockBytes)
        expect(await target.kv.write(name, block ?? new Uint8Array(), target.kv.era())).toBe(true)
      }
      expect(await source.kv.read('00')).toBeNull()
      const continued = await target.generate(request)
      expect(continued.usage.cachedTokens).toBe(128)
      expect(bits(continued)).toBe(bits(computed))
    } finally {
      await Promise.all([source.close(), target.close()])
    }
  })
})

async function run(directory: string, format: WeightFormat, variation: Variation, all = requests): Promise<Result[]> {
  return (await runCounted(directory, format, variation, all)).results
}

async function runCounted(
  directory: string,
  format: WeightFormat,
  variation: Variation,
  all: readonly TestRequest[],
): Promise<{ results: Result[]; counters: RequestCounters }> {
  const model = await runModel(await pack(directory, format), { ...single, ...variation })
  try {
    const beside = Array.from({ length: variation.neighbours ?? 0 }, (_, index) => model.generate(neighbour(index)))
    // Candidates run at once: one row a step is too few for them.
    const asked = all.filter(({ candidates = 1 }) => candidates <= (variation.maxBatchTokens ?? candidates))
    const results = await (variation.neighbours ? Promise.all(asked.map(model.generate)) : inTurn(model, asked))
    await Promise.all(beside)
    return { results, counters: model.counters }
  } finally {
    await model.close()
  }
}

async function inTurn(model: RunningModel, asked: readonly TestRequest[]): Promise<Result[]> {
  const results: Result[] = []
  for (const request of asked) results.push(await model.generate(request))
  return results
}

/** Everything that a client sees of a result, floats by their bits. */
function bits({ prompt, tokens, finishes }: Result): string {
  const floatBits = (values: ArrayLike<number>) => Buffer.from(Float32Array.from(values).buffer).toString('hex')
  const token = ({ id, logprobs, experts }: TokenOutput) => [
    id,
    logprobs && [
      floatBits([logprobs.chosen]),
      logprobs.rank,
      logprobs.top.map((entry) => [entry.id, floatBits([entry.logprob])]),
      logprobs.all && floatBits(logprobs.all),
    ],
    experts?.map((entry) => [entry.layer, entry.expertIds, floatBits(entry.weights)]),
  ]
  return JSON.stringify([prompt?.map(token), tokens.map((candidate) => candidate.map(token)), finishes])
}
