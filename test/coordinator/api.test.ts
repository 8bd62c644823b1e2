import { status } from '@grpc/grpc-js'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { openSecurity } from '../../services/config/tls.ts'
import type { ServedModel } from '../../services/coordinator/api/models.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { outputOf, TestClient } from './client.ts'
import { endOfText, type FakeEngine, fakeEngine, fakeManifest, fakeModel, noCluster } from './fakes.ts'

const generate = 'moesh.v1.Inference/Generate'
const resume = 'moesh.v1.Inference/Resume'

let server: ApiServer
let client: TestClient
let engine: FakeEngine
let models: ServedModel[]
let said: Buffer
const defects: Error[] = []

beforeEach(async () => {
  said = Buffer.from('Once upon a time')
  engine = fakeEngine((_, candidate) => {
    return candidate === 0 ? said : Buffer.from(`${said.toString()} ${candidate}`)
  })
  models = [fakeModel(engine)]
  const listen = '127.0.0.1:0'
  const report = (error: Error) => defects.push(error)
  server = await startApi({
    listen,
    security: await openSecurity({ role: 'coordinator', listen: [listen], report }),
    models: () => models,
    cluster: noCluster,
    journal: createMemoryJournal({ keepMs: 60_000, requestsMax: 10, nowMs: () => 0 }),
    report,
  })
  server.setServing(true)
  client = new TestClient(server.address)
})

afterEach(() => {
  client.close()
  server.close()
  expect(defects).toEqual([])
})

describe('Generate', () => {
  test('streams prompt, deltas, finish and usage in that order', async () => {
    const { messages, error, headers } = await client.collect(generate, {
      text: 'héllo',
      sampling: { temperature: 0, seed: '18446744073709551615' },
      request_id: 'mine',
    })
    expect(error).toBeNull()
    expect(headers?.get('moesh-request-id')).toEqual(['mine'])
    expect(messages.every(({ request_id }) => request_id === 'mine')).toBe(true)
    expect(messages[0].prompt).toMatchObject({
      token_ids: [...Buffer.from('héllo')],
      tokens: [],
      seed: '18446744073709551615',
      cached_tokens: 3,
      model: 'bytes',
      fingerprint: 'fingerprint-1',
    })
    const output = outputOf(messages)
    expect(output.ids).toEqual([...said, endOfText])
    expect(output.text).toBe('Once upon a time')
    expect(output.finish).toMatchObject({ reason: 'STOP', stop_token_id: endOfText, stop_string: '' })
    expect(messages.at(-1).usage).toEqual({
      prompt_tokens: 6,
      cached_tokens: 3,
      output_tokens: said.length + 1,
      queue_seconds: 0.001,
      time_to_first_token_seconds: 0.002,
      total_seconds: 0.005,
      retried_dispatches: 4,
      resumed: 0,
    })
    expect(messages.filter(({ prompt }) => prompt !== null)).toHaveLength(1)
    expect(messages.filter(({ usage }) => usage !== null)).toHaveLength(1)
  })

  test('fills in the model’s defaults, and lets the client override each', async () => {
    await client.collect(generate, { text: 'a' })
    await client.collect(generate, {
      token_ids: { ids: [1, 2] },
      sampling: {
        temperature: 0.25,
        top_p: 0.5,
        top_k: 7,
        min_p: 0.125,
        seed: 9,
        max_tokens: 3,
        min_tokens: 1,
        stop_token_ids: [4],
        ignore_eos: true,
        repetition_penalty: 1.5,
        frequency_penalty: 0.5,
        presence_penalty: -0.5,
        logit_bias: { 3: -2 },
      },
      priority: -4,
    })
    const [defaults, given] = engine.requests
    expect(defaults?.sampling).toMatchObject({ temperature: 0.7, topP: 0.9, topK: 0, minP: 0, maxTokens: 511 })
    expect(defaults?.sampling.stopTokenIds).toEqual(new Set([endOfText]))
    expect(given).toMatchObject({ promptIds: [1, 2], priority: -4 })
    expect(given?.sampling).toEqual({
      temperature: 0.25,
      topP: 0.5,
      topK: 7,
      minP: 0.125,
      seed: 9n,
      maxTokens: 3,
      minTokens: 1,
      stopTokenIds: new Set([4]),
      repetitionPenalty: 1.5,
      frequencyPenalty: 0.5,
      presencePenalty: -0.5,
      logitBias: new Map([[3, -2]]),
    })
  })

  test('never sends half a character', async () => {
    said = Buffer.from('a€😀é')
    const { messages } = await client.collect(generate, { text: 'x' })
    const { pieces, text } = outputOf(messages)
    expect(text).toBe('a€😀é')
    for (const piece of pieces) expect(piece).not.toContain('\ufffd')
  })

  test('a character that never becomes whole shows as U+FFFD at the end', async () => {
    said = Buffer.from([0x61, 0xe2, 0x82])
    const { messages } = await client.collect(generate, { text: 'x' })
    expect(outputOf(messages).text).toBe('a\ufffd')
  })

  test.each([
    { stop: ['pon a'], include: false, text: 'Once u', ids: 11, stopped: 'pon a' },
    { stop: ['pon a'], include: true, text: 'Once upon a', ids: 11, stopped: 'pon a' },
    { stop: ['time', 'upo'], include: false, text: 'Once ', ids: 8, stopped: 'upo' },
    { stop: ['upside', 'times'], include: false, text: 'Once upon a time', ids: 17, stopped: '' },
  ])('stops at $stop (include_stop $include)', async ({ stop, include, text, ids, stopped }) => {
    const { messages } = await client.collect(generate, {
      text: 'x',
      sampling: { stop },
      output: { include_stop: include },
    })
    const output = outputOf(messages)
    expect(output.text).toBe(text)
    expect(output.ids).toHaveLength(ids)
    expect(output.finish).toMatchObject({ reason: 'STOP', stop_string: stopped })
    // What was sent is never taken back: each piece continues the text.
    if (!include) expect(text.startsWith(output.pieces.slice(0, -1).join(''))).toBe(true)
  })

  test('a stop string before min_tokens is passed over', async () => {
    said = Buffer.from('ab ab ab')
    const { messages } = await client.collect(generate, { text: 'x', sampling: { stop: ['ab'], min_tokens: 4 } })
    expect(outputOf(messages).text).toBe('ab ')
  })

  test('no_text sends ids only, and stop strings still count', async () => {
    const { messages } = await client.collect(generate, {
      text: 'x',
      sampling: { stop: ['upon'] },
      output: { no_text: true },
    })
    const output = outputOf(messages)
    expect(output.text).toBe('')
    expect(Buffer.from(output.ids).toString()).toBe('Once upon')
    expect(output.finish.stop_string).toBe('upon')
  })

  test.each([
    { output: { include_stop: true }, text: 'Once upon a time<end>' },
    { output: { include_stop: true, skip_special_tokens: true }, text: 'Once upon a time' },
    { output: {}, text: 'Once upon a time' },
  ])('the end token shows as text only where asked for: $output', async ({ output, text }) => {
    const { messages } = await client.collect(generate, { text: 'x', output })
    expect(outputOf(messages).text).toBe(text)
  })

  test('candidates share a request, and one that stops does not stop the other', async () => {
    const { messages } = await client.collect(generate, {
      text: 'x',
      sampling: { n: 2, stop: ['e 1'], max_tokens: 30 },
    })
    expect(outputOf(messages, 0)).toMatchObject({ text: 'Once upon a time', finish: { stop_token_id: endOfText } })
    expect(outputOf(messages, 1)).toMatchObject({ text: 'Once upon a tim', finish: { stop_string: 'e 1' } })
    expect(messages.at(-1).usage.output_tokens).toBe(17 + 18)
  })

  test('max_tokens ends with LENGTH; 0 scores the prompt only', async () => {
    const three = await client.collect(generate, { text: 'x', sampling: { max_tokens: 3 } })
    expect(outputOf(three.messages)).toMatchObject({ text: 'Onc', finish: { reason: 'LENGTH' } })
    const none = await client.collect(generate, {
      text: 'xyz',
      sampling: { max_tokens: 0 },
      output: { prompt_logprobs: 2 },
    })
    expect(outputOf(none.messages)).toMatchObject({ ids: [], finish: { reason: 'LENGTH' } })
    const { tokens } = none.messages[0].prompt
    expect(tokens.map(({ id }: { id: number }) => id)).toEqual([...Buffer.from('xyz')])
    expect(tokens[1].logprobs.top.map(({ id }: { id: number }) => id)).toEqual([0, 1])
  })

  test('log-probabilities and traces come through bit for bit, the whole vocabulary too', async () => {
    const { messages } = await client.collect(generate, { text: 'x', output: { logprobs: -1, expert_trace: true } })
    const { tokens } = outputOf(messages)
    const [first] = tokens
    expect(first.logprobs.all).toHaveLength(257)
    expect(first.logprobs.all[79]).toBe(first.logprobs.chosen)
    expect(first.logprobs.chosen).toBe(Math.fround(-0.25 - 79 / 7))
    expect(first.experts).toEqual([{ layer: 1, expert_ids: [2, 5], weights: [0.75, 0.25] }])
  })

  test('chats go through the template, with tools and variables', async () => {
    const { messages, error } = await client.collect(generate, {
      chat: {
        messages: [{ role: 'user', content: 'hi' }],
        tools_json: ['{"type":"function"}'],
        template_kwargs_json: '{"enable_thinking":false}',
      },
    })
    expect(error).toBeNull()
    expect(Buffer.from(messages[0].prompt.token_ids).toString()).toBe(
      '<user>hi{"tools":[{"type":"function"}],"variables":{"enable_thinking":false}}<assistant>',
    )
  })
})

describe('what is refused', () => {
  test.each([
    {
      request: { text: 'x', model: 'gpt' },
      code: status.NOT_FOUND,
      says: /model "gpt" is not served here; there is bytes/,
    },
    { request: {}, says: /^input: is unset; one of text, token_ids and chat/ },
    { request: { text: '' }, says: /^text: the prompt has no tokens/ },
    { request: { token_ids: { ids: [] } }, says: /^token_ids.ids: the prompt has no tokens/ },
    {
      request: { token_ids: { ids: [1, 257] } },
      says: /^token_ids.ids\[1\]: 257 is not in the vocabulary; ids are from 0 to 256/,
    },
    {
      request: { text: 'x'.repeat(512) },
      says: /^text: the prompt has 512 tokens, the context of bytes leaves room for 511/,
    },
    { request: { text: 'x'.repeat(300_000) }, says: /^text: has 300000 bytes/ },
    {
      request: { text: 'x', sampling: { temperature: -0.5 } },
      says: /^sampling.temperature: -0.5 is not allowed; it must be 0/,
    },
    { request: { text: 'x', sampling: { temperature: Number.NaN } }, says: /^sampling.temperature: NaN/ },
    {
      request: { text: 'x', sampling: { temperature: Number.POSITIVE_INFINITY } },
      says: /^sampling.temperature: Infinity/,
    },
    {
      request: { text: 'x', sampling: { top_p: 0 } },
      says: /^sampling.top_p: 0 is not allowed; it must be above 0 and at most 1/,
    },
    { request: { text: 'x', sampling: { top_p: 1.5 } }, says: /^sampling.top_p: 1.5/ },
    { request: { text: 'x', sampling: { top_k: -2 } }, says: /^sampling.top_k: -2/ },
    {
      request: { text: 'x', sampling: { min_p: 1.25 } },
      says: /^sampling.min_p: 1.25 is not allowed; it must be from 0 to 1/,
    },
    { request: { text: 'x', sampling: { repetition_penalty: 0 } }, says: /^sampling.repetition_penalty/ },
    {
      request: { text: 'x', sampling: { frequency_penalty: 3 } },
      says: /^sampling.frequency_penalty: 3 .* from -2 to 2/,
    },
    { request: { text: 'x', sampling: { presence_penalty: Number.NaN } }, says: /^sampling.presence_penalty: NaN/ },
    { request: { text: 'x', sampling: { stop: [''] } }, says: /^sampling.stop\[0\]: is empty/ },
    {
      request: { text: 'x', sampling: { stop: Array(65).fill('a') } },
      says: /^sampling.stop: has 65 entries; at most 64/,
    },
    { request: { text: 'x', sampling: { stop_token_ids: [300] } }, says: /^sampling.stop_token_ids\[0\]: 300/ },
    {
      request: { text: 'x', sampling: { logit_bias: { 300: 1 } } },
      says: /^sampling.logit_bias: 300 is not in the vocabulary/,
    },
    { request: { text: 'x', sampling: { n: 65 } }, says: /^sampling.n: 65 is not allowed; it must be at most 64/ },
    {
      request: { text: 'x', sampling: { n: 9 } },
      says: /^sampling.n: 9 candidates do not run at once here; at most 8/,
    },
    {
      request: { text: 'x', sampling: { min_tokens: 5, max_tokens: 4 } },
      says: /^sampling.min_tokens: 5 is more than max_tokens, 4/,
    },
    {
      request: { text: 'x', sampling: { constraint: { regex: 'a+' } } },
      says: /^sampling.constraint: constrained output is not supported/,
    },
    { request: { text: 'x', output: { logprobs: -2 } }, says: /^output.logprobs: -2 is not allowed/ },
    {
      request: { text: 'x', output: { prompt_logprobs: 258 } },
      says: /^output.prompt_logprobs: 258 is more than the vocabulary/,
    },
    { request: { text: 'x', request_id: 'a b' }, says: /^request_id: has blanks/ },
    { request: { text: 'x', request_id: 'a'.repeat(129) }, says: /^request_id: is too long; at most 128/ },
    { request: { chat: { messages: [] } }, says: /^chat.messages: is empty/ },
    { request: { chat: { messages: [{ role: '', content: 'a' }] } }, says: /^chat.messages\[0\].role: is empty/ },
    {
      request: { chat: { messages: [{ role: 'user' }], tools_json: ['[1'] } },
      says: /^chat.tools_json\[0\]: is not a JSON object/,
    },
    {
      request: { chat: { messages: [{ role: 'user' }], template_kwargs_json: '[]' } },
      says: /^chat.template_kwargs_json: is not a JSON object/,
    },
    {
      request: { chat: { messages: [{ role: 'user' }], continue_final_message: true } },
      says: /^chat.continue_final_message: needs a last/,
    },
  ])('$says', async ({ request, code, says }) => {
    const error = await client.refused(generate, request)
    expect(error.details).toMatch(says)
    expect(error.code).toBe(code ?? status.INVALID_ARGUMENT)
    expect(engine.requests).toEqual([])
  })

  test('a process without a model says to try again, one with several asks which', async () => {
    models = []
    expect(await client.refused(generate, { text: 'x' })).toMatchObject({ code: status.UNAVAILABLE })
    models = [fakeModel(engine), fakeModel(engine, { manifest: fakeManifest({ name: 'other' }) })]
    expect(await client.refused(generate, { text: 'x' })).toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: expect.stringMatching(/choose one of bytes, other/),
    })
  })

  test('a model without a tokenizer takes token ids only', async () => {
    models = [fakeModel(engine, { text: null })]
    expect((await client.refused(generate, { text: 'x' })).details).toMatch(/^text: bytes has no tokenizer/)
    const { messages } = await client.collect(generate, { token_ids: { ids: [1] } })
    expect(outputOf(messages).text).toBe('')
  })

  test('a full queue is RESOURCE_EXHAUSTED with the time to come again', async () => {
    engine.hold()
    const calls = [1, 2, 3, 4].map(() => client.collect(generate, { text: 'x' }))
    await expect.poll(() => engine.requests.length).toBe(4)
    const error = await client.refused(generate, { text: 'x' })
    expect(error.code).toBe(status.RESOURCE_EXHAUSTED)
    expect(error.metadata.get('retry-after-ms')).toEqual(['1000'])
    engine.release()
    for (const { error } of await Promise.all(calls)) expect(error).toBeNull()
  })

  test('an id in use is ALREADY_EXISTS, and free again afterwards', async () => {
    engine.hold()
    const first = client.collect(generate, { text: 'x', request_id: 'same' })
    await expect.poll(() => engine.requests.length).toBe(1)
    expect(await client.refused(generate, { text: 'x', request_id: 'same' })).toMatchObject({
      code: status.ALREADY_EXISTS,
    })
    engine.release()
    expect((await first).error).toBeNull()
    expect((await client.collect(generate, { text: 'x', request_id: 'same' })).error).toBeNull()
  })
})

describe('requests that end early', () => {
  test('Cancel ends a request with CANCELLED and what it has; an unknown id is NOT_FOUND', async () => {
    engine.hold()
    const running = client.collect(generate, { text: 'x', request_id: 'long' })
    await expect.poll(() => engine.requests.length).toBe(1)
    await client.call('moesh.v1.Inference/Cancel', { request_id: 'long' })
    const { messages, error } = await running
    expect(error).toBeNull()
    expect(outputOf(messages).finish.reason).toBe('CANCELLED')
    await expect(client.call('moesh.v1.Inference/Cancel', { request_id: 'long' })).rejects.toMatchObject({
      code: status.NOT_FOUND,
    })
  })

  test('what a request waits for before it is queued ends with it, whoever ends it', async () => {
    const waits: { signal: AbortSignal; goOn: () => void }[] = []
    const prepare: ServedModel['prepare'] = (_, signal) =>
      new Promise((resolve) => {
        waits.push({ signal, goOn: resolve })
        signal.addEventListener('abort', () => resolve())
      })
    models[0] = fakeModel(engine, { prepare })
    const goesOn = client.collect(generate, { text: 'x', request_id: 'goes-on' })
    await expect.poll(() => waits.length).toBe(1)
    expect(engine.requests).toEqual([])
    waits[0]?.goOn()
    expect(outputOf((await goesOn).messages).finish.reason).toBe('STOP')
    expect(engine.requests[0]?.waitedMs).toBeGreaterThan(0)

    engine.hold()
    const cancelled = client.collect(generate, { text: 'x', request_id: 'cancelled' })
    await expect.poll(() => waits.length).toBe(2)
    await client.call('moesh.v1.Inference/Cancel', { request_id: 'cancelled' })
    expect(waits[1]?.signal.aborted).toBe(true)
    expect(outputOf((await cancelled).messages).finish.reason).toBe('CANCELLED')
    engine.release()

    const call = client.stream(generate, { text: 'x', request_id: 'gone' })
    call.on('error', () => {})
    await expect.poll(() => waits.length).toBe(3)
    call.cancel()
    await expect.poll(() => waits[2]?.signal.aborted).toBe(true)
    await expect.poll(() => server.runningRequests()).toBe(0)
    expect(engine.requests.map(({ id }) => id)).toEqual(['goes-on', 'cancelled'])

    const refused = client.collect(generate, { text: 'x', request_id: 'refused' })
    await expect.poll(() => waits.length).toBe(4)
    engine.submit = () => {
      throw new MoeshError('QUEUE_FULL', 'it has filled meanwhile')
    }
    waits[3]?.goOn()
    expect((await refused).error?.code).toBe(status.RESOURCE_EXHAUSTED)
  })

  test('a client that vanishes, or whose deadline passes, ends its request', async () => {
    engine.hold()
    const call = client.stream(generate, { text: 'x', request_id: 'gone' })
    call.on('error', () => {})
    await expect.poll(() => engine.requests.length).toBe(1)
    call.cancel()
    await expect.poll(() => engine.cancelled).toEqual(['gone'])
    expect(server.runningRequests()).toBe(0)

    engine.hold()
    const { error } = await client.collect(generate, { text: 'x', request_id: 'late' }, { deadline: Date.now() + 50 })
    expect(error?.code).toBe(status.DEADLINE_EXCEEDED)
    await expect.poll(() => engine.cancelled).toEqual(['gone', 'late'])
  })

  test('a client that does not read is cut off before it fills the memory, and can resume', async () => {
    // 512 tokens of a vocabulary of 65536 log-probabilities are 128 MiB.
    const all = new Float32Array(65536)
    const wide = fakeEngine(() => Buffer.alloc(500, 'x'))
    const submit = wide.submit
    wide.submit = (request, sink) =>
      submit(request, {
        prompt: (tokens, cached) => sink.prompt(tokens, cached),
        token: (candidate, index, token) =>
          sink.token(candidate, index, { ...token, logprobs: { chosen: 0, rank: 1, top: [], all } }),
        finish: (candidate, reason) => sink.finish(candidate, reason),
        done: (usage) => sink.done(usage),
        fail: (error) => sink.fail(error),
      })
    models = [fakeModel(wide)]
    const call = client.stream(generate, { text: 'x', request_id: 'slow', output: { logprobs: 0 } })
    const failed = new Promise<{ code: number; details: string }>((resolve) => call.on('error', resolve))
    call.on('data', () => call.pause())
    await expect.poll(() => wide.cancelled).toEqual(['slow'])
    expect(server.runningRequests()).toBe(0)
    call.resume()
    call.removeAllListeners('data')
    call.on('data', () => {})
    expect(await failed).toMatchObject({ code: status.RESOURCE_EXHAUSTED, details: expect.stringMatching(/Resume/) })
  })

  test('draining refuses new requests, lets old ones end, and sends the rest elsewhere', async () => {
    engine.hold()
    const running = client.collect(generate, { text: 'x' })
    await expect.poll(() => engine.requests.length).toBe(1)
    const deadline = new AbortController()
    const drained = server.drain(deadline.signal)
    expect(await client.refused(generate, { text: 'x' })).toMatchObject({ code: status.UNAVAILABLE })
    deadline.abort()
    await drained
    expect((await running).error).toMatchObject({
      code: status.UNAVAILABLE,
      details: expect.stringMatching(/Resume on another one/),
    })
  })
})

describe('Resume', () => {
  /** Reads `count` tokens of a request, then breaks the connection. */
  async function cutAfter(count: number, request: object): Promise<void> {
    const call = client.stream(generate, request)
    call.on('error', () => {})
    let seen = 0
    await new Promise<void>((resolve) => {
      call.on('data', ({ delta }) => {
        seen += delta?.tokens.length ?? 0
        if (seen >= count) resolve()
      })
    })
    call.cancel()
    await expect.poll(() => server.runningRequests()).toBe(0)
  }

  test.each([0, 1, 3, 8, 17])('goes on after token %i with what the uncut stream would have said', async (received) => {
    said = Buffer.from('a€ once upon a time')
    const request = { text: 'prompt', sampling: { stop: ['a ti'], seed: 4 }, output: { logprobs: 1 } }
    const whole = (await client.collect(generate, { ...request, request_id: 'whole' })).messages
    await cutAfter(Math.min(received, 5), { ...request, request_id: 'cut' })
    const { messages, error } = await client.collect(resume, {
      request_id: 'cut',
      received: received === 0 ? {} : { 0: received },
    })
    expect(error).toBeNull()
    expect(messages[0].prompt).toEqual(whole[0].prompt)
    const [output, expected] = [outputOf(messages), outputOf(whole)]
    expect(output.tokens).toEqual(expected.tokens.slice(received))
    expect(output.finish).toEqual(expected.finish)
    const before = expected.pieces.slice(0, received).join('')
    expect(before + output.text).toBe(expected.text)
    expect(messages.at(-1).usage).toMatchObject({ resumed: 1, output_tokens: expected.tokens.length })
  })

  test('a stream that had ended already gives its end again', async () => {
    await client.collect(generate, { text: 'x', request_id: 'done', sampling: { max_tokens: 4 } })
    const { messages } = await client.collect(resume, { request_id: 'done', received: { 0: 4 } })
    expect(outputOf(messages)).toMatchObject({ ids: [], text: '', finish: { reason: 'LENGTH' } })
  })

  test('takes over from a stream that still runs', async () => {
    engine.hold()
    const first = client.stream(generate, { text: 'x', request_id: 'twice' })
    const firstError = new Promise((resolve) => first.on('error', resolve))
    first.on('data', () => {})
    await expect.poll(() => engine.requests.length).toBe(1)
    const second = client.collect(resume, { request_id: 'twice' })
    await expect.poll(() => engine.cancelled).toEqual(['twice'])
    expect(outputOf((await second).messages).text).toBe('Once upon a time')
    expect(await firstError).toMatchObject({ code: status.CANCELLED })
  })

  test('refuses unknown ids, candidates that are not there, and another fingerprint', async () => {
    expect(await client.refused(resume, { request_id: 'never' })).toMatchObject({ code: status.NOT_FOUND })
    await client.collect(generate, { text: 'x', request_id: 'known' })
    expect(await client.refused(resume, { request_id: 'known', received: { 1: 2 } })).toMatchObject({
      code: status.INVALID_ARGUMENT,
      details: expect.stringMatching(/^received: there is no candidate 1/),
    })
    models = [fakeModel(engine, { fingerprint: 'fingerprint-2' })]
    expect(await client.refused(resume, { request_id: 'known' })).toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: expect.stringMatching(/began with fingerprint-1/),
    })
  })
})

describe('the other calls', () => {
  test('Tokenize and Detokenize are inverse; offsets are bytes', async () => {
    const tokens = await client.call('moesh.v1.Inference/Tokenize', { text: 'é!' })
    expect(tokens).toEqual({ ids: [0xc3, 0xa9, 0x21], offsets: [0, 1, 2], rendered: '' })
    expect(await client.call('moesh.v1.Inference/Detokenize', { ids: [...tokens.ids, endOfText] })).toEqual({
      text: 'é!<end>',
    })
    const chat = await client.call('moesh.v1.Inference/Tokenize', {
      chat: { messages: [{ role: 'user', content: 'q' }], continue_final_message: false },
    })
    expect(chat.rendered).toBe('<user>q{"tools":null,"variables":{}}<assistant>')
    expect(Buffer.from(chat.ids).toString()).toBe(chat.rendered)
    await expect(client.call('moesh.v1.Inference/Detokenize', { ids: [1, 999] })).rejects.toMatchObject({
      code: status.INVALID_ARGUMENT,
      details: expect.stringMatching(/^ids\[1\]: 999/),
    })
  })

  test('ListModels says what is served', async () => {
    const { models } = await client.call('moesh.v1.Inference/ListModels', {})
    expect(models).toMatchObject([
      {
        id: 'bytes',
        weight_format: 'f32',
        parameters: '1000',
        active_parameters: '300',
        context_length: 512,
        vocabulary: 257,
        layers: 2,
        moe_layers: 1,
        experts: 8,
        experts_per_token: 2,
        license: 'Apache-2.0',
        fingerprint: 'fingerprint-1',
        chat_template: 'a template',
      },
    ])
  })

  test('health answers for the whole, each service and liveness', async () => {
    const check = async (service: string) =>
      (await client.call('grpc.health.v1.Health/Check', { service })).status as string
    for (const service of ['', 'moesh.v1.Inference', 'moesh.v1.Cluster']) expect(await check(service)).toBe('SERVING')
    server.setServing(false)
    expect(await check('')).toBe('NOT_SERVING')
    expect(await check('liveness')).toBe('SERVING')
    await expect(check('nonsense')).rejects.toMatchObject({ code: status.NOT_FOUND })
  })
})
