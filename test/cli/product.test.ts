import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Message, outputOf, TestClient } from '../coordinator/client.ts'
import { Moesh } from './moesh.ts'

const demo = join(import.meta.dirname, '..', '..', 'models', 'tales-moe')
const reference: {
  perplexity: { value: number; tokens: number }
  greedy: { prompt: string; prompt_ids: number[]; tokens: number[]; text: string }[]
} = JSON.parse(readFileSync(join(demo, 'reference.json'), 'utf8'))

const moesh = new Moesh()
const pack = (format: string) => join(moesh.directory, format)

beforeAll(async () => {
  for (const format of ['f32', 'int8', 'int8-fast', 'int4']) {
    expect(await moesh.run('pack', demo, pack(format), '--format', format)).toMatchObject({ status: 0 })
  }
})
afterAll(() => moesh.close())

describe('the demo model, served', () => {
  let client: TestClient
  let served: Awaited<ReturnType<Moesh['start']>>

  beforeAll(async () => {
    served = await moesh.start('serve', pack('f32'), '--ranks', '3')
    client = new TestClient(served.grpc)
  })
  afterAll(() => client.close())

  test.each(reference.greedy)(
    'continues "$prompt" as the reference does',
    async ({ prompt, prompt_ids, tokens, text }) => {
      const { messages, error } = await client.collect('moesh.v1.Inference/Generate', {
        text: prompt,
        sampling: { temperature: 0, max_tokens: tokens.length },
      })
      expect(error).toBeNull()
      expect(messages[0].prompt.token_ids).toEqual(prompt_ids)
      expect(outputOf(messages)).toMatchObject({ ids: tokens, text, finish: { reason: 'LENGTH' } })
    },
  )

  test('bad requests are refused one by one, and the next good one is served', async () => {
    const refuse = async (request: object) => (await client.refused('moesh.v1.Inference/Generate', request)).code
    expect(await refuse({ token_ids: { ids: [2048] } })).toBe(status.INVALID_ARGUMENT)
    expect(await refuse({ text: '' })).toBe(status.INVALID_ARGUMENT)
    expect(await refuse({ token_ids: { ids: Array(600).fill(1) } })).toBe(status.INVALID_ARGUMENT)
    expect(await refuse({ text: 'x', model: 'other' })).toBe(status.NOT_FOUND)
    expect(await refuse({ text: 'x', sampling: { temperature: -1 } })).toBe(status.INVALID_ARGUMENT)
    expect(await refuse({ text: 'x', output: { logprobs: 100_000 } })).toBe(status.INVALID_ARGUMENT)
    const vanishing = client.stream('moesh.v1.Inference/Generate', { text: 'Once' })
    vanishing.on('error', () => {})
    await new Promise((resolve) => vanishing.once('data', resolve))
    vanishing.cancel()
    const { error } = await client.collect('moesh.v1.Inference/Generate', { text: 'x', sampling: { max_tokens: 2 } })
    expect(error).toBeNull()
  })

  test('log-probabilities of the prompt and of what is generated agree, to the bit', async () => {
    const { prompt_ids: ids, tokens } = reference.greedy[0] ?? { prompt_ids: [], tokens: [] }
    const generated = await client.collect('moesh.v1.Inference/Generate', {
      token_ids: { ids },
      sampling: { temperature: 0, max_tokens: 8 },
      output: { logprobs: 2, expert_trace: true },
    })
    const scored = await client.collect('moesh.v1.Inference/Generate', {
      token_ids: { ids: [...ids, ...tokens.slice(0, 8)] },
      sampling: { max_tokens: 0 },
      output: { prompt_logprobs: 2, prompt_expert_trace: true },
    })
    const prompt = scored.messages[0].prompt.tokens
    expect(prompt[0].logprobs).toBeNull()
    for (const [index, token] of outputOf(generated.messages).tokens.entries()) {
      expect(prompt[ids.length + index].logprobs).toEqual(token.logprobs)
      expect(prompt[ids.length + index - 1].experts).toEqual(token.experts)
    }
  })

  test('Resume goes on after a cut with the tokens, text and log-probability bits of the uncut stream', async () => {
    const request = {
      text: 'Once upon a time',
      sampling: { seed: 11, n: 3, max_tokens: 24, stop: ['king'], repetition_penalty: 1.1 },
      output: { logprobs: 1, expert_trace: true },
    }
    const whole = (await client.collect('moesh.v1.Inference/Generate', { ...request, request_id: 'whole' })).messages
    const cut = client.stream('moesh.v1.Inference/Generate', { ...request, request_id: 'cut' })
    cut.on('error', () => {})
    const seen: Message[] = []
    await new Promise<void>((resolve) => {
      cut.on('data', (message) => {
        seen.push(message)
        if (seen.length > 12) resolve()
      })
    })
    cut.cancel()
    const received = Object.fromEntries([0, 1, 2].map((candidate) => [candidate, outputOf(seen, candidate).ids.length]))
    const { messages, error } = await client.collect('moesh.v1.Inference/Resume', { request_id: 'cut', received })
    expect(error).toBeNull()
    for (const candidate of [0, 1, 2]) {
      const [before, after, expected] = [seen, messages, whole].map((part) => outputOf(part, candidate))
      expect([...(before?.tokens ?? []), ...(after?.tokens ?? [])]).toEqual(expected?.tokens)
      expect(`${before?.text}${after?.text}`).toBe(expected?.text)
      expect(after?.finish).toEqual(expected?.finish)
    }
    const texts = [0, 1, 2].map((candidate) => outputOf(whole, candidate).text)
    expect(new Set(texts).size).toBe(3)
  })

  test('Tokenize and Detokenize know the reference’s prompts', async () => {
    for (const { prompt, prompt_ids: ids } of reference.greedy) {
      const tokenized = await client.call('moesh.v1.Inference/Tokenize', { text: prompt })
      expect(tokenized.ids).toEqual(ids)
      const { text } = await client.call('moesh.v1.Inference/Detokenize', { ids })
      expect(text).toBe(prompt)
    }
  })

  test('generate says the same from a server and in its own process', async () => {
    const args = ['generate', 'The queen', '--seed', '7', '--max-tokens', '12', '--json']
    const remote = JSON.parse((await moesh.run(...args, '--server', served.grpc)).stdout)
    const local = JSON.parse((await moesh.run(...args, '--model', pack('f32'), '--ranks', '2')).stdout)
    expect(local.token_ids).toEqual(remote.token_ids)
    expect(local.fingerprint).toBe(remote.fingerprint)
  })

  test('SIGTERM ends it with 0', async () => {
    expect(served.role).toBe('coordinator')
    expect((await served.stop()).status).toBe(0)
  })
})

test.each([
  { format: 'f32', within: 0.001 },
  { format: 'int8', within: 0.01 },
  { format: 'int8-fast', within: 0.03 },
  { format: 'int4', within: 0.06 },
])('perplexity of $format is within $within of the reference', async ({ format, within }) => {
  const text = join(demo, 'validation.txt')
  const { status, stdout } = await moesh.run('verify', pack(format), '--perplexity', text, '--json')
  expect(status).toBe(0)
  const { perplexity, tokens } = JSON.parse(stdout)
  expect(tokens).toBe(reference.perplexity.tokens)
  expect(Math.abs(perplexity / reference.perplexity.value - 1)).toBeLessThan(within)
})

test('serve without a model packs the demo once, says what runs, shows a sample and what to try', async () => {
  const served = await moesh.start('serve')
  const client = new TestClient(served.grpc)
  const { models } = await client.call('moesh.v1.Inference/ListModels', {})
  expect(models).toMatchObject([{ id: 'tales-moe', family: 'qwen3_moe', license: 'Apache-2.0', weight_format: 'int8' }])
  client.close()
  expect(await moesh.run('status', '--server', served.grpc)).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/expert +ready/),
  })
  const { status: exitStatus, stderr } = await served.stop()
  expect(exitStatus).toBe(0)
  expect(stderr).toMatch(/licence +Apache-2.0\n/)
  expect(stderr).toMatch(/on 3 ranks \(cpu\)/)
})
