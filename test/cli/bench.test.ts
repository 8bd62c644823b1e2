import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { benchCharts, benchText, percentiles } from '../../services/cli/bench.ts'
import { ApiClient } from '../../services/cli/client.ts'
import { runLoad } from '../../services/cli/load.ts'
import { plotSvg } from '../../services/cli/plot.ts'
import { openSecurity } from '../../services/config/tls.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { fakeEngine, fakeModel, noCluster } from '../coordinator/fakes.ts'
import { Moesh } from './moesh.ts'

const engine = fakeEngine(() => Buffer.alloc(100, 'x'), { queueMax: 2 })
const moesh = new Moesh()
const directory = mkdtempSync(join(tmpdir(), 'moesh-bench-cli-'))
let server: ApiServer

beforeAll(async () => {
  const listen = '127.0.0.1:0'
  const report = () => {}
  server = await startApi({
    listen,
    security: await openSecurity({ role: 'coordinator', listen: [listen], report }),
    models: () => [fakeModel(engine)],
    cluster: noCluster,
    journal: createMemoryJournal({ keepMs: 1000, requestsMax: 8, nowMs: () => 0 }),
    report,
  })
  server.setServing(true)
})
afterAll(async () => {
  await server.drain(AbortSignal.timeout(1000))
  moesh.close()
  rmSync(directory, { recursive: true, force: true })
})

test('bench measures each step of concurrency, as JSON and as a plot', async () => {
  const svg = join(directory, 'plot.svg')
  const flags = ['--concurrency', '1,2', '--requests', '4', '--prompt-tokens', '8', '--max-tokens', '5']
  const { status, stdout } = await moesh.run('bench', '--server', server.address, '--json', '--svg', svg, ...flags)
  expect(status).toBe(0)
  const document = JSON.parse(stdout)
  expect(document).toMatchObject({ model: { id: 'bytes' }, prompt_tokens: 8, max_tokens: 5 })
  expect(document.steps).toHaveLength(2)
  for (const step of document.steps) {
    expect(step).toMatchObject({ requests: 4, failed: 0 })
    expect(step.output_tokens_per_second * step.seconds).toBeCloseTo(20)
    expect(step.time_to_first_token_ms.p99).toBeGreaterThanOrEqual(step.time_to_first_token_ms.p50)
  }
  expect(readFileSync(svg, 'utf8')).toMatch(/^<svg .*<polyline .*<\/svg>\n$/s)
})

test('bench names the server that does not answer, and numbers that are none', async () => {
  expect(await moesh.run('bench', '--server', '127.0.0.1:1')).toMatchObject({
    status: 1,
    stdout: '',
    stderr: expect.stringContaining('no coordinator answers at 127.0.0.1:1'),
  })
  expect(await moesh.run('bench', '--concurrency', '1,zero')).toMatchObject({
    status: 2,
    stderr: expect.stringContaining('--concurrency: "1,zero" is not allowed'),
  })
})

test('requests that a full queue refuses count as failed, the others are measured', async () => {
  const client = await ApiClient.open({
    server: server.address,
    tlsCert: undefined,
    tlsKey: undefined,
    tlsCa: undefined,
  })
  try {
    const step = { concurrency: 12, requests: 24, promptTokens: 4, maxTokens: 3, vocabulary: 256 }
    const samples = await runLoad(client, step, new AbortController().signal)
    expect(samples.failures.length).toBeGreaterThan(0)
    expect(samples.failures.length + samples.timesToFirstTokenMs.length).toBe(24)
    expect(samples.gapsMs).toHaveLength(2 * samples.timesToFirstTokenMs.length)
    expect(samples.outputTokens).toBe(3 * samples.timesToFirstTokenMs.length)
  } finally {
    client.close()
  }
})

test('percentiles are values that occurred', () => {
  const values = Array.from({ length: 100 }, (_, index) => 100 - index)
  expect(percentiles(values)).toEqual({ p50: 50, p90: 90, p99: 99 })
  expect(percentiles([7])).toEqual({ p50: 7, p90: 7, p99: 7 })
})

test('one token a request has no time between tokens, in text and plot', () => {
  const document = {
    server: 's',
    model: { id: 'a<b', weight_format: 'int8', fingerprint: 'f' },
    prompt_tokens: 8,
    max_tokens: 1,
    steps: [1, 2].map((concurrency) => ({
      concurrency,
      requests: 4,
      failed: 0,
      seconds: 2,
      output_tokens_per_second: 2 * concurrency,
      prompt_tokens_per_second: 16,
      requests_per_second: 2,
      time_to_first_token_ms: { p50: 1, p90: 20, p99: 300 },
      inter_token_ms: null,
    })),
  }
  expect(benchText(document)).toMatch(/2 +4 +0 +4\.00 +16\.0 +2\.00 +1\.00 \/ 20\.0 \/ 300\n/)
  const svg = plotSvg(benchCharts(document))
  expect(svg).toContain('a&lt;b: tokens/s')
  expect(svg).not.toContain('NaN')
})
