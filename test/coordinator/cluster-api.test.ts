import { status } from '@grpc/grpc-js'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { openSecurity } from '../../services/config/tls.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import type { ClusterEvent, ClusterStatus, ClusterView } from '../../services/coordinator/cluster-view.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { type Message, TestClient } from './client.ts'

const state: ClusterStatus = {
  cluster: 'default',
  modelDigest: 'abc',
  model: 'tales',
  epoch: 7,
  leader: 'c1',
  nodes: [
    {
      id: 'e1',
      role: 'EXPERT',
      state: 'LATE',
      address: '127.0.0.1:1',
      zone: 'z',
      memoryBytes: 2 ** 40,
      usedBytes: 5,
      ranks: 2,
      shards: 64,
      provider: 'cpu',
      numerics: 'n',
      rowsPerSecond: 1.5,
      dispatchP50Ms: 2,
      dispatchP99Ms: 40,
      version: '0.1.0',
      reason: 'no answer for 300 ms',
    },
  ],
  minReplicas: 2,
  uncovered: 0,
  underReplicated: 3,
  balancedness: 0.75,
  store: { kind: 'redis', reachable: true, roundTripMs: 0.5 },
  experts: [],
  runningRequests: 1,
  queuedRequests: 2,
  tokensPerSecond: 30.5,
}

const past: ClusterEvent[] = ['a', 'b', 'c'].map((text, index) => ({
  timeUnixMs: 1_800_000_000_000 + index,
  kind: 'node.joined',
  node: 'e1',
  text,
  fields: { shards: '64' },
}))

let server: ApiServer
let client: TestClient
let tell: (event: ClusterEvent) => void
let isWatched: boolean
const asked: unknown[] = []

beforeEach(async () => {
  asked.length = 0
  const known = (node: string) => {
    asked.push(node)
    if (node !== 'e1') throw new MoeshError('NODE_UNKNOWN', `node: there is no node "${node}"`, 'there is e1')
  }
  const view: ClusterView = {
    getStatus: async ({ expertLoad }) => ({
      ...state,
      experts: expertLoad ? [{ layer: 1, expert: 2, rowsPerSecond: 3, nodes: ['e1'] }] : [],
    }),
    watchEvents: (last, listener) => {
      isWatched = true
      for (const event of past.slice(past.length - last)) listener(event)
      tell = listener
      return () => {
        isWatched = false
      }
    },
    drain: async (node) => {
      known(node)
      return { moved: 64 }
    },
    undrain: async (node) => known(node),
    rebalance: async ({ dryRun }) => {
      asked.push(dryRun)
      return {
        moves: [{ layer: 0, expert: 1, from: 'e1', to: 'e2', why: 'hot' }],
        balancednessBefore: 0.5,
        balancednessAfter: 0.75,
        bytes: 1000,
        epoch: dryRun ? 0 : 8,
      }
    },
    cancelElsewhere: async (id) => id === 'elsewhere',
    getProfile: () => ({
      coordinator: 'c1',
      threads: 2,
      layers: 4,
      moeLayers: 3,
      steps: [
        {
          kind: 'decode',
          steps: 10,
          sequences: 160,
          rows: 160,
          dispatches: 30,
          wallMs: 500,
          teamMs: 200,
          headMs: 50,
          dispatchMs: 240,
          expertMs: 180,
          insideMs: 150,
          phases: [{ name: 'qkv', ms: 30, runtimeMs: 28 }],
        },
      ],
      oneRowOverhead: [{ fromMs: 0.25, toMs: 0.5, count: 3 }],
      ranks: { computeMs: 300, runtimeMs: 270 },
    }),
  }
  const listen = '127.0.0.1:0'
  const report = (error: Error) => {
    throw error
  }
  server = await startApi({
    listen,
    security: await openSecurity({ role: 'coordinator', listen: [listen], report }),
    models: () => [],
    cluster: view,
    journal: createMemoryJournal({ keepMs: 1, requestsMax: 1, nowMs: () => 0 }),
    report,
  })
  client = new TestClient(server.address)
})

afterEach(() => {
  client.close()
  server.close()
})

test('GetStatus says all, and the load of each expert where asked for', async () => {
  const status = await client.call('moesh.v1.Cluster/GetStatus', {})
  expect(status).toMatchObject({ cluster: 'default', epoch: '7', leader: 'c1', under_replicated: 3, experts: [] })
  expect(status.store).toEqual({ kind: 'redis', reachable: true, round_trip_seconds: 0.0005 })
  expect(status.nodes[0]).toMatchObject({ id: 'e1', role: 'EXPERT', state: 'LATE', memory_bytes: String(2 ** 40) })
  expect(status.nodes[0]).toMatchObject({ dispatch_p50_seconds: 0.002, dispatch_p99_seconds: 0.04 })
  const { experts } = await client.call('moesh.v1.Cluster/GetStatus', { expert_load: true })
  expect(experts).toEqual([{ layer: 1, expert: 2, rows_per_second: 3, nodes: ['e1'] }])
})

test('WatchStatus begins with the status now, and ends when the coordinator does', async () => {
  const watch = client.stream('moesh.v1.Cluster/WatchStatus', {})
  const ended = new Promise<Message>((resolve) => watch.on('error', resolve))
  const first = await new Promise<Message>((resolve) => watch.on('data', resolve))
  expect(first.cluster).toBe('default')
  await server.drain(AbortSignal.abort())
  expect((await ended).code).toBe(status.UNAVAILABLE)
})

test('WatchEvents begins with past events, goes on with new ones, and lets go when the client does', async () => {
  const watch = client.stream('moesh.v1.Cluster/WatchEvents', { last: 2 })
  watch.on('error', () => {})
  const seen: Message[] = []
  watch.on('data', (event) => seen.push(event))
  await expect.poll(() => seen.length).toBe(2)
  tell({ timeUnixMs: 5, kind: 'epoch', node: '', text: 'd', fields: {} })
  await expect.poll(() => seen.map(({ text }) => text)).toEqual(['b', 'c', 'd'])
  expect(seen[0]).toMatchObject({ time_unix_ms: '1800000000001', fields: { shards: '64' } })
  watch.cancel()
  await expect.poll(() => isWatched).toBe(false)
})

test('Drain, Undrain and Rebalance reach the view; unknown and empty nodes are refused', async () => {
  expect(await client.call('moesh.v1.Cluster/Drain', { node: 'e1' })).toEqual({ moved: 64 })
  expect(await client.call('moesh.v1.Cluster/Undrain', { node: 'e1' })).toEqual({})
  expect(await client.call('moesh.v1.Cluster/Rebalance', { dry_run: true })).toMatchObject({
    moves: [{ layer: 0, expert: 1, from: 'e1', to: 'e2', why: 'hot' }],
    balancedness_after: 0.75,
    bytes: '1000',
    epoch: '0',
  })
  expect(asked).toEqual(['e1', 'e1', true])
  await expect(client.call('moesh.v1.Cluster/Drain', { node: 'e9' })).rejects.toMatchObject({ code: status.NOT_FOUND })
  await expect(client.call('moesh.v1.Cluster/Undrain', {})).rejects.toMatchObject({
    code: status.INVALID_ARGUMENT,
    details: expect.stringMatching(/^node: is empty/),
  })
})

test('GetProfile tells the counters of the steps, in seconds', async () => {
  expect(await client.call('moesh.v1.Profiling/GetProfile', {})).toMatchObject({
    coordinator: 'c1',
    moe_layers: 3,
    steps: [
      {
        kind: 'decode',
        sequences: '160',
        seconds: 0.5,
        expert_seconds: 0.18,
        inside_seconds: 0.15,
        phases: [{ name: 'qkv', seconds: 0.03, runtime_seconds: 0.028 }],
      },
    ],
    one_row_overhead: [{ from_seconds: 0.00025, to_seconds: 0.0005, count: '3' }],
    ranks: { compute_seconds: 0.3, runtime_seconds: 0.27 },
  })
})

test('Cancel looks on the other coordinators too', async () => {
  expect(await client.call('moesh.v1.Inference/Cancel', { request_id: 'elsewhere' })).toEqual({})
})
