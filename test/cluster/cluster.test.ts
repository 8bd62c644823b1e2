import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { status as grpcStatus } from '@grpc/grpc-js'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { TokenLogprobs } from '../../services/coordinator/request.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import { type Message, outputOf } from '../coordinator/client.ts'
import { redisCommand } from '../redis.ts'
import { type ClusterProcess, TestCluster, until } from '../support/cluster.ts'
import { documentedMetrics, metricNames, readMetrics } from '../support/metrics.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'
import { runModel } from '../support/running-model.ts'
import { emptyResult, runStream, type StreamRequest, type StreamResult } from '../support/streams.ts'

/** The product as it is deployed: processes, sockets, a Redis. What only pure parts decide is proved at those. */

const leaseSeconds = 2
const pack = testPacks()

describe.skipIf(redisCommand() === null)('a cluster of processes', () => {
  describe('int8, two copies of every expert', () => {
    let cluster: TestCluster
    let coordinator: ClusterProcess
    const expert = (index: number): ClusterProcess => {
      const found = cluster.experts[index]
      if (!found) throw new Error(`there is no expert ${index}`)
      return found
    }

    beforeAll(async () => {
      const { dir } = await pack(demoCheckpoint, 'int8')
      const told = { flags: ['--metrics-listen', '127.0.0.1:0'] }
      const options = { pack: dir, experts: 0, minReplicas: 2, leaseSeconds }
      cluster = await TestCluster.start({ ...options, coordinator: told, expert: told })
      // One first: of two copies one cannot be had yet, which an event tells.
      await (await cluster.addExpert('e1')).ready()
      for (const id of ['e2', 'e3']) await cluster.addExpert(id)
      await cluster.settled()
      const [first] = cluster.coordinators
      if (!first) throw new Error('no coordinator')
      coordinator = first
    })
    afterAll(() => cluster?.close())

    test('gives the bits of the embedded engine', () => comparesEqual(cluster, coordinator, 'int8'))

    test('coordinator and experts tell their numbers', async () => {
      // Nodes that held more while others joined let go of it after the cluster is settled.
      await until('nodes hold and tell two copies of every expert, and no more', 10_000, async () => {
        const { nodes } = await cluster.status()
        const held = (await Promise.all(cluster.experts.map(scrape))).map((its) => its.get('moesh_expert_shards'))
        const told = cluster.experts.map(({ id }) => nodes.find((node) => node.id === id)?.shards)
        return isDeepStrictEqual(held, told) && sum(held.map(Number)) === 2 * 64
      })
      const request = { token_ids: { ids: [1, 2, 3] }, sampling: { max_tokens: 4, ignore_eos: true } }
      await cluster.client(coordinator).collect('moesh.v1.Inference/Generate', request)
      const ofCluster = await scrape(coordinator)
      expect(ofCluster.get('moesh_nodes{role="expert",state="ready"}')).toBe(3)
      expect(ofCluster.get('moesh_nodes{role="expert",state="lost"}')).toBe(0)
      expect(ofCluster.get('moesh_placement_epoch')).toBe(Number((await cluster.status()).epoch))
      expect(ofCluster.get('moesh_copies_missing')).toBe(0)
      expect(ofCluster.get('moesh_leader')).toBe(1)
      const experts = await Promise.all(cluster.experts.map(scrape))
      const all = (name: string) => sum(experts.map((its) => its.get(name) ?? Number.NaN))
      expect(all('moesh_expert_cache_bytes')).toBeGreaterThanOrEqual(all('moesh_expert_shard_bytes'))
      // Audited rows are computed by experts, too, but are no part of a dispatch.
      const rows = cluster.experts.map(({ id }) => ofCluster.get(`moesh_dispatch_rows_total{node="${id}"}`) ?? 0)
      // Three tokens of the prompt and three more, four experts each in four layers.
      expect(sum(rows)).toBeGreaterThanOrEqual(6 * 4 * 4)
      expect(all('moesh_expert_rows_total')).toBeGreaterThanOrEqual(sum(rows))
      expect(all('moesh_expert_runtime_seconds_total')).toBeGreaterThan(0)
      expect(all('moesh_expert_runtime_seconds_total')).toBeLessThan(all('moesh_expert_compute_seconds_total'))
      expect(metricNames(ofCluster, ...experts)).toEqual(documentedMetrics())
    })

    test('a node that is killed costs streams neither a token nor an error', async () => {
      await whileStreaming(cluster, coordinator, async () => {
        await expert(1).kill()
        await until('the node is lost and every expert has two copies again', 10_000, async () => {
          const { nodes, under_replicated } = await cluster.status()
          return under_replicated === 0 && nodes.every(({ id, state }) => id !== 'e2' || state === 'LOST')
        })
      })
      expert(1).start()
      await cluster.settled()
    })

    test('a node that joins gets its share; one that is told to end hands it over and exits with 0', async () => {
      const damaged = damagedCopy((await pack(demoCheckpoint, 'int8')).dir)
      await whileStreaming(cluster, coordinator, async () => {
        const joining = await cluster.addExpert('e4', { flags: ['--model', damaged] })
        await cluster.settled()
        // Its own pack is no good: it said so, and took the bytes from others.
        expect(joining.log()).toMatch(/damaged|digest/)
        expect((await node(cluster, 'e4'))?.shards).toBeGreaterThan(0)
        joining.signal('SIGTERM')
        expect(await joining.finished).toEqual({ status: 0, signal: null })
        expect(joining.log()).toContain('everything was moved off')
        await until('it is gone from the status', leaseSeconds * 1000, async () => !(await node(cluster, 'e4')))
        cluster.experts.pop()
        expect((await cluster.settled()).under_replicated).toBe(0)
      })
    })

    test('drain empties a node under load, undrain takes it back', async () => {
      const client = cluster.client(coordinator)
      await whileStreaming(cluster, coordinator, async () => {
        const before = (await node(cluster, 'e1'))?.shards
        expect(await client.call('moesh.v1.Cluster/Drain', { node: 'e1' })).toEqual({ moved: before })
        expect(await node(cluster, 'e1')).toMatchObject({ state: 'DRAINED', shards: 0 })
        expect((await cluster.status()).under_replicated).toBe(0)
        await client.call('moesh.v1.Cluster/Undrain', { node: 'e1' })
        await until('it has shards again', 10_000, async () => ((await node(cluster, 'e1'))?.shards ?? 0) > 0)
      })
      await cluster.settled()
    })

    test('a dry run of rebalance explains and changes nothing', async () => {
      const { epoch } = await cluster.status()
      const plan = await cluster.client(coordinator).call('moesh.v1.Cluster/Rebalance', { dry_run: true })
      for (const { why } of plan.moves) expect(why).not.toBe('')
      expect(plan.balancedness_after).toBeGreaterThanOrEqual(plan.balancedness_before - 1e-9)
      expect(Number(plan.epoch)).toBe(0)
      expect((await cluster.status()).epoch).toBe(epoch)
    })

    test('says what is wrong with a node, and serves on', async () => {
      const other = await pack(demoCheckpoint, 'f32')
      await whileStreaming(cluster, coordinator, async () => {
        const twin = await cluster.addExpert('e1')
        const strangers = [
          await cluster.addExpert('other', { flags: ['--model', other.dir] }),
          await cluster.addExpert('small', { flags: ['--memory', '10KiB'] }),
        ]
        expect(await twin.finished).toEqual({ status: 1, signal: null })
        expect(twin.log()).toMatch(/a node with the id "e1" is alive; give this one another --id/)
        await until('the other model is named', 10_000, async () =>
          /another model/.test((await node(cluster, 'other'))?.reason ?? ''),
        )
        await until('the memory is named', 10_000, async () =>
          /memory/.test((await node(cluster, 'small'))?.reason ?? ''),
        )
        expect((await node(cluster, 'small'))?.shards).toBe(0)
        await Promise.all(strangers.map((each) => each.kill()))
        cluster.experts.splice(3)
        const refused = await cluster.client(coordinator).refused('moesh.v1.Cluster/Drain', { node: 'nobody' })
        expect(refused.code).toBe(grpcStatus.NOT_FOUND)
        expect(refused.details).toMatch(/no expert node "nobody"; there is .*e1/)
      })
      const unmet = (await cluster.events()).filter(({ kind }: Message) => kind === 'placement.unmet')
      expect(unmet.map(({ text }: Message) => text).join()).toMatch(/fewer copies than minReplicas 2: only 1 node/)
    })

    test('a node that stops to answer delays nobody by its lease', async () => {
      await whileStreaming(cluster, coordinator, async (running) => {
        const stoppedMs = performance.now()
        expert(2).signal('SIGSTOP')
        await until('every stream has gone on', 10_000, () =>
          running.every(({ tokens, endedMs }) => endedMs !== null || (tokens.at(-1)?.atMs ?? 0) > stoppedMs),
        )
        expect(performance.now() - stoppedMs).toBeLessThan(leaseSeconds * 500)
        expert(2).signal('SIGCONT')
      })
      await cluster.settled()
    })
  })

  test('f32 gives the bits of the embedded engine', async () => {
    const { dir } = await pack(demoCheckpoint, 'f32')
    const cluster = await TestCluster.start({ pack: dir, minReplicas: 2 })
    try {
      const [coordinator] = cluster.coordinators
      if (coordinator) await comparesEqual(cluster, coordinator, 'f32')
    } finally {
      await cluster.close()
    }
  })

  test('a node that computes wrong rows is found by the audit and suspended, and nothing of it stays', async () => {
    const { dir } = await pack(demoCheckpoint, 'int8')
    const cluster = await TestCluster.start({ pack: dir, experts: 2, minReplicas: 2, expert: { proxied: true } })
    const [coordinator] = cluster.coordinators
    const [bad] = cluster.experts
    if (!coordinator || !bad) throw new Error('it is not complete')
    let isFound = false
    const long = { promptIds: Array.from({ length: 70 }, (_, at) => 5 + ((at * 37) % 250)), maxTokens: 150 }
    const load = async () => {
      while (!isFound) await runStream(cluster, coordinator, long)
    }
    // What comes through its connection now is what a node with faulty memory would send.
    bad.proxy?.corrupt(true)
    const wrong = await runStream(cluster, coordinator, long)
    const loads = Promise.all([load(), load(), load(), load()])
    try {
      await until('it is suspended', 30_000, async () => (await node(cluster, bad.id))?.state === 'SUSPENDED')
      expect((await node(cluster, bad.id))?.reason).toMatch(/audit/)
      expect((await node(cluster, 'e2'))?.state).toBe('READY')
      expect((await cluster.events()).map(({ kind }: Message) => kind)).toContain('audit.differs')
      isFound = true
      await loads
      const anew = await runStream(cluster, coordinator, { ...long, cacheSalt: 'anew' })
      expect(bits(wrong)).not.toBe(bits(anew))
      expect(bits(await runStream(cluster, coordinator, long))).toBe(bits(anew))
      bad.proxy?.corrupt(false)
      await cluster.client(coordinator).call('moesh.v1.Cluster/Undrain', { node: bad.id })
      await until('it is taken back', 10_000, async () => (await node(cluster, bad.id))?.state === 'READY')
    } finally {
      isFound = true
      await loads
      await cluster.close()
    }
  })
})

test.skipIf(redisCommand() === null)(
  'coordinators take over from each other what they have read of a prompt',
  async () => {
    const { dir } = await pack(demoCheckpoint, 'int8')
    const told = { flags: ['--metrics-listen', '127.0.0.1:0'] }
    const cluster = await TestCluster.start({ pack: dir, experts: 2, coordinators: 2, coordinator: told })
    try {
      const [first, other] = cluster.coordinators
      if (!first || !other) throw new Error('it is not complete')
      const prompt = { promptIds: Array.from({ length: 300 }, (_, at) => 5 + ((at * 37) % 250)), maxTokens: 40 }
      const alone = bits(await runStream(cluster, other, { ...prompt, cacheSalt: 'alone' }))
      const sent = async () => (await scrape(first)).get('moesh_kv_sent_tokens_total') ?? 0
      // On a busy machine computing may be quicker than the first connection.
      for (let round = 0; round < 10 && (await sent()) === 0; round++) {
        const salted = { ...prompt, cacheSalt: `round ${round}` }
        expect(bits(await runStream(cluster, first, salted))).toBe(alone)
        // The store hears of it once a second.
        await sleep(1500)
        expect(bits(await runStream(cluster, other, salted))).toBe(alone)
      }
      expect(await sent()).toBeGreaterThan(0)
      const second = await scrape(other)
      const fetched = second.get('moesh_kv_fetched_tokens_total') ?? 0
      expect(fetched).toBeGreaterThan(0)
      expect(fetched).toBeLessThanOrEqual(await sent())
      expect(second.get('moesh_prompt_tokens_cached_total')).toBe(fetched)
      await first.kill()
      expect(bits(await runStream(cluster, other, { ...prompt, cacheSalt: 'without it' }))).toBe(alone)
    } finally {
      await cluster.close()
    }
  },
)

const streamRequests: readonly StreamRequest[] = [0, 1, 2, 3].map((index) => ({
  promptIds: Array.from({ length: 3 + 5 * index }, (_, at) => 5 + ((at * 37 + index * 11) % 250)),
  maxTokens: 150,
  temperature: index % 2,
  seed: index,
}))

/** A pack whose shards are not what its manifest says. */
function damagedCopy(dir: string): string {
  const copy = mkdtempSync(join(tmpdir(), 'moesh-damaged-'))
  onTestFinished(() => rmSync(copy, { recursive: true }))
  cpSync(dir, copy, { recursive: true })
  for (const name of readdirSync(copy).filter((file) => file.startsWith('experts-'))) {
    const bytes = readFileSync(join(copy, name))
    for (let at = 100; at < bytes.length; at += 1000) bytes[at] = (bytes[at] ?? 0) ^ 1
    writeFileSync(join(copy, name), bytes)
  }
  return copy
}

const expected = new WeakMap<TestCluster, string[]>()

/** Streams run one after the other in four slots while `act` does, and all give what an undisturbed run gave. */
async function whileStreaming(
  cluster: TestCluster,
  coordinator: ClusterProcess,
  act: (running: readonly StreamResult[]) => Promise<void>,
): Promise<void> {
  const calm =
    expected.get(cluster) ??
    (await Promise.all(streamRequests.map((one) => runStream(cluster, coordinator, one)))).map(bits)
  expected.set(cluster, calm)
  let isOver = false
  const running = streamRequests.map(() => emptyResult())
  const ended: { slot: number; result: StreamResult }[] = []
  const loops = streamRequests.map(async (request, slot) => {
    do {
      const result = emptyResult()
      running[slot] = result
      await runStream(cluster, coordinator, request, result)
      ended.push({ slot, result })
    } while (!isOver)
  })
  try {
    await until('all streams run', 10_000, () => running.every(({ tokens }) => tokens.length > 5))
    await act(running)
  } finally {
    isOver = true
    await Promise.all(loops)
  }
  for (const { slot, result } of ended) {
    expect(result.error).toBeNull()
    expect(result.resumes).toBe(0)
    expect(bits(result)).toBe(calm[slot])
  }
}

function bits({ tokens }: StreamResult): string {
  return tokens.map(({ id, logprob }) => `${id}:${logprob}`).join(' ')
}

async function node(cluster: TestCluster, id: string) {
  return (await cluster.status()).nodes.find((each) => each.id === id)
}

/** Tokens and every log-probability of prompt and output. */
async function comparesEqual(cluster: TestCluster, coordinator: ClusterProcess, format: WeightFormat): Promise<void> {
  const promptIds = [58, 229, 7, 270, 176, 31, 99, 204, 18, 5, 77, 130]
  const model = await runModel(await pack(demoCheckpoint, format), {
    transport: 'shared memory',
    nodes: 1,
    ranks: 1,
    threads: 1,
  })
  try {
    const { prompt, tokens } = await model.generate({
      promptIds,
      sampling: { maxTokens: 24 },
      output: { logprobs: -1, promptLogprobs: -1 },
    })
    const { messages, error } = await cluster.client(coordinator).collect('moesh.v1.Inference/Generate', {
      token_ids: { ids: promptIds },
      sampling: { temperature: 0, max_tokens: 24, ignore_eos: true },
      output: { logprobs: -1, prompt_logprobs: -1 },
    })
    expect(error).toBeNull()
    const output = outputOf(messages)
    expect(output.ids).toEqual(tokens[0]?.map(({ id }) => id))
    expect(output.tokens.map(wireBits)).toEqual(tokens[0]?.map(({ logprobs }) => engineBits(logprobs)))
    const info = messages.find((message) => message.prompt)?.prompt
    expect(info.tokens.map(wireBits)).toEqual(prompt?.map(({ logprobs }) => engineBits(logprobs)))
  } finally {
    await model.close()
  }
}

function wireBits({ logprobs }: Message): string | null {
  return logprobs ? Buffer.from(Float32Array.from(logprobs.all).buffer).toString('base64') : null
}

function engineBits(logprobs: TokenLogprobs | null): string | null {
  const all = logprobs?.all
  return all ? Buffer.from(all.buffer, all.byteOffset, all.byteLength).toString('base64') : null
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

/** By its log the port is known; a process that was started again has logged several. */
function scrape(process: ClusterProcess): Promise<Map<string, number>> {
  const [, address] = [...process.log().matchAll(/"metrics":"([^"]+)"/g)].at(-1) ?? []
  return readMetrics(address ?? '')
}
