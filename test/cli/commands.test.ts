import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openSecurity } from '../../services/config/tls.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import type { ClusterView } from '../../services/coordinator/cluster-view.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { fakeEngine, fakeModel, noCluster } from '../coordinator/fakes.ts'

const main = join(import.meta.dirname, '..', '..', 'services', 'cli', 'main.ts')
const engine = fakeEngine(() => Buffer.from(' there was a king'))
const children = new Set<ChildProcess>()
let server: ApiServer

beforeAll(async () => {
  const listen = '127.0.0.1:0'
  const report = () => {}
  const view: ClusterView = {
    ...noCluster,
    getStatus: async ({ expertLoad }) => ({
      cluster: 'default',
      modelDigest: 'abcdef0123456789ff',
      model: 'tales',
      epoch: 7,
      leader: 'c1',
      nodes: [
        {
          id: 'e1',
          role: 'EXPERT',
          state: 'READY',
          address: '127.0.0.1:9',
          zone: '',
          memoryBytes: 2 ** 30,
          usedBytes: 2 ** 20,
          ranks: 2,
          shards: 64,
          provider: 'cpu',
          numerics: 'n',
          rowsPerSecond: 12.4,
          dispatchP50Ms: 0.42,
          dispatchP99Ms: 130,
          version: '0.1.0',
          reason: '',
        },
      ],
      minReplicas: 1,
      uncovered: 0,
      underReplicated: 0,
      balancedness: 0.93,
      store: { kind: 'redis', reachable: true, roundTripMs: 0.12 },
      experts: expertLoad ? [{ layer: 0, expert: 3, rowsPerSecond: 2, nodes: ['e1'] }] : [],
      runningRequests: 1,
      queuedRequests: 0,
      tokensPerSecond: 41.25,
    }),
    drain: async (node) => (node === 'e1' ? { moved: 64 } : noCluster.drain(node)),
    rebalance: async () => ({
      moves: [{ layer: 2, expert: 5, from: '', to: 'e1', why: 'hot: 40 rows/s' }],
      balancednessBefore: 0.5,
      balancednessAfter: 0.9,
      bytes: 2048,
      epoch: 0,
    }),
  }
  server = await startApi({
    listen,
    security: await openSecurity({ role: 'coordinator', listen: [listen], report }),
    models: () => [fakeModel(engine)],
    cluster: view,
    journal: createMemoryJournal({ keepMs: 60_000, requestsMax: 10, nowMs: () => 0 }),
    report,
  })
})

afterAll(() => {
  server.close()
  for (const child of children) child.kill('SIGKILL')
})

function moesh(...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  children.add(child)
  const output = { stdout: '', stderr: '' }
  child.stdout.on('data', (data) => {
    output.stdout += data
  })
  child.stderr.on('data', (data) => {
    output.stderr += data
  })
  return new Promise((resolve) => {
    child.on('close', (status) => {
      children.delete(child)
      resolve({ status, ...output })
    })
  })
}

const remote = (...args: string[]) => moesh(...args, '--server', server.address)

test('generate streams the text to stdout and says to stderr how fast it was', async () => {
  const { status, stdout, stderr } = await remote('generate', 'Once upon a time', '--max-tokens', '6', '--seed', '3')
  expect({ status, stdout }).toEqual({ status: 0, stdout: ' there\n' })
  expect(stderr).toMatch(/^6 tokens in .* tokens\/s, first after 2 ms\n$/)
  expect(engine.requests.at(-1)?.sampling).toMatchObject({ seed: 3n, maxTokens: 6 })
})

test('generate --json prints one document', async () => {
  const { stdout } = await remote('generate', 'x', '--json', '--stop', 'king', '--temperature', '0')
  expect(JSON.parse(stdout)).toMatchObject({
    model: 'bytes',
    text: ' there was a ',
    finish: { reason: 'STOP', stop_string: 'king' },
    usage: { prompt_tokens: 1 },
  })
})

test('status is a table, or JSON', async () => {
  const { status, stdout } = await remote('status', '--expert-load')
  expect(status).toBe(0)
  expect(stdout).toBe(
    [
      'cluster    default, epoch 7, leader c1, store redis, 0.12 ms a round trip',
      'model      tales, digest abcdef0123456789',
      'placement  every expert has at least 1 live copy; balance 93 %',
      'requests   1 running, 0 queued, 41.3 tokens/s',
      '',
      'NODE  ROLE    STATE  ADDRESS      ZONE  RANKS  SHARDS  MEMORY                ROWS/S  P50      P99     REASON',
      'e1    expert  ready  127.0.0.1:9  -     2 cpu  64      1.00 MiB of 1.00 GiB  12      0.42 ms  130 ms',
      '',
      'LAYER  EXPERT  ROWS/S  NODES',
      '0      3       2.0     e1',
      '',
    ].join('\n'),
  )
  const json = JSON.parse((await remote('status', '--json')).stdout)
  expect(json).toMatchObject({ epoch: 7, nodes: [{ id: 'e1', memory_bytes: 2 ** 30 }] })
})

test('drain, undrain and rebalance say what was done', async () => {
  expect((await remote('drain', 'e1')).stdout).toMatch(/^e1 is empty: 64 shards were copied elsewhere first/)
  expect((await remote('undrain', 'e1', '--json')).stdout).toBe('{"node":"e1"}\n')
  expect((await remote('rebalance', '--dry-run')).stdout).toBe(
    [
      'LAYER  EXPERT  FROM        TO  WHY',
      '2      5       (new copy)  e1  hot: 40 rows/s',
      '',
      '1 moves, 2.00 KiB to copy, balance 50 % → 90 %; this was a dry run: nothing was done',
      '',
    ].join('\n'),
  )
})

test.each([
  { args: ['drain', 'e9'], status: 1, says: /^moesh: there is no node "e9"\n$/ },
  {
    args: ['generate', 'x', '--temperature', '-1'],
    status: 2,
    says: /^moesh: --temperature: "-1" is not allowed; .*\n$/,
  },
  { args: ['generate', ''], status: 1, says: /^moesh: text: the prompt has no tokens; it needs one\n$/ },
])('$args fails with one sentence', async ({ args, status, says }) => {
  const result = await remote(...args)
  expect(result).toEqual({ status, stdout: '', stderr: expect.stringMatching(says) })
})

test.each([
  {
    args: ['status', '--server', '127.0.0.1:1'],
    status: 1,
    says: /^moesh: no coordinator answers at 127.0.0.1:1 .*; start one with "moesh serve"/,
  },
  { args: ['frobnicate'], status: 2, says: /^moesh: there is no command "frobnicate"; there is serve, coordinator/ },
  { args: ['drain'], status: 2, says: /^moesh: moesh drain: NODE is missing/ },
  { args: ['verify', '/nonexistent'], status: 1, says: /^moesh: pack \/nonexistent is not a directory/ },
])('$args fails without a server too', async ({ args, status, says }) => {
  expect(await moesh(...args)).toEqual({ status, stdout: '', stderr: expect.stringMatching(says) })
})

test('help and version go to stdout', async () => {
  expect((await moesh('--help')).stdout).toMatch(/Usage: moesh COMMAND/)
  expect(await moesh('expert', '--help')).toMatchObject({ status: 0, stdout: expect.stringMatching(/--lease SECONDS/) })
  expect((await moesh('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
})
