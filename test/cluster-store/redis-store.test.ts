import { setTimeout as wait } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { describe, expect, onTestFinished, test } from 'vitest'
import { noGauges } from '../../services/cluster/node.ts'
import { openRedisStore } from '../../services/cluster/redis-store.ts'
import type { Store } from '../../services/cluster/store.ts'
import { redisCommand, startRedis, startSentinel, type TestRedis } from '../redis.ts'
import { nodeEntry, placementOf, storeContract } from './contract.ts'

describe.skipIf(redisCommand() === null)('a real Redis', () => {
  storeContract('Redis', async () => {
    const redis = await startRedis()
    return {
      open: () => openRedisStore({ url: redis.url, cluster: 'contract' }),
      pass: async (ms) => {
        await wait(ms)
      },
      close: () => redis.stop(),
    }
  })

  test('two clusters on one server do not see each other', async () => {
    const redis = await redisForTest()
    const one = await openRedisStore({ url: redis.url, cluster: 'one' })
    const two = await openRedisStore({ url: redis.url, cluster: 'two' })
    await one.register(nodeEntry('n'), 1000)
    await two.register(nodeEntry('n', 'b'), 1000)
    await one.lead('n', 'a', 1000)
    expect((await two.lead('n', 'b', 1000)).incarnation).toBe('b')
    await Promise.all([one.close(), two.close()])
  })

  test('a server that restarts empty begins a new generation and never gives an old token again', async () => {
    const redis = await redisForTest()
    const store = await openRedisStore({ url: redis.url, cluster: 'c' })
    await store.register(nodeEntry('n'), 1000)
    const before = await beatOf(store)
    const { token } = await store.lead('n', 'a', 1000)
    await redis.kill()
    await expect(store.lead('n', 'a', 1000)).rejects.toMatchObject({ code: 'STORE_UNREACHABLE' })
    expect(store.health().reachable).toBe(false)
    let hints = 0
    store.onHint(() => hints++)
    await redis.restart()
    // Nobody says anything: that it is back is news by itself.
    await expect.poll(() => hints, { timeout: 3000 }).toBeGreaterThan(0)
    const after = await untilReachable(() => beatOf(store))
    expect(after.isKnown).toBe(false)
    expect(after.graceMs).toBeGreaterThan(0)
    expect(after.cursor.generation).toBeGreaterThan(before.cursor.generation)
    expect(after.cursor.version).toBeGreaterThan(before.cursor.version)
    expect((await store.lead('n', 'a', 1000)).token).toBeGreaterThan(token)
    await expect(store.writeTarget(placementOf(3, token))).rejects.toMatchObject({ code: 'NOT_LEADER' })
    await store.close()
  })

  test('a server that does not answer fails calls soon, and is used again when it does', async () => {
    const redis = await redisForTest()
    const store = await openRedisStore({ url: redis.url, cluster: 'c' })
    redis.pause()
    await expect(store.lead('n', 'a', 1000)).rejects.toMatchObject({ code: 'STORE_UNREACHABLE' })
    redis.resume()
    await untilReachable(() => store.lead('n', 'a', 1000))
    expect(store.health().reachable).toBe(true)
    await store.close()
  })

  test('a node of a version that writes something else does not blind the others', async () => {
    const redis = await redisForTest()
    const store = await openRedisStore({ url: redis.url, cluster: 'c' })
    await store.register(nodeEntry('n'), 1000)
    await store.register(nodeEntry('odd'), 1000)
    const client = new Redis({ port: redis.port, host: '127.0.0.1' })
    await client.hset('moesh:{c}:nodes', 'odd', '{"id":7}')
    expect((await beatOf(store)).nodes.map(({ record }) => record.id)).toEqual(['n'])
    await client.hset('moesh:{c}:nodes', 'odd', 'not JSON')
    expect((await beatOf(store)).isKnown).toBe(true)
    client.disconnect()
    await store.close()
  })

  test('a wrong password, a stranger and a wrong URL are told apart', async () => {
    const redis = await redisForTest(['--requirepass', 'secret'])
    const address = `127.0.0.1:${redis.port}`
    await expect(openRedisStore({ url: `redis://:wrong@${address}`, cluster: 'c', connectMs: 300 })).rejects.toThrow(
      /WRONGPASS/,
    )
    await expect(openRedisStore({ url: `redis://${address}`, cluster: 'c', connectMs: 300 })).rejects.toThrow(/NOAUTH/)
    const store = await openRedisStore({ url: `redis://:secret@${address}`, cluster: 'c' })
    await store.close()
    await redis.kill()
    await expect(openRedisStore({ url: `redis://${address}`, cluster: 'c', connectMs: 300 })).rejects.toMatchObject({
      code: 'STORE_UNREACHABLE',
      message: expect.stringMatching(/ECONNREFUSED/),
    })
    await expect(openRedisStore({ url: 'http://x', cluster: 'c' })).rejects.toMatchObject({ code: 'USAGE' })
    await expect(openRedisStore({ url: 'redis://x', cluster: 'a b' })).rejects.toMatchObject({ code: 'USAGE' })
  })

  test('a Redis Cluster keeps everything of a cluster in one slot', async () => {
    const redis = await redisForTest(['--cluster-enabled', 'yes', '--cluster-announce-ip', '127.0.0.1'])
    await claimAllSlots(redis.port)
    const store = await openRedisStore({ url: `redis-cluster://127.0.0.1:${redis.port}`, cluster: 'c' })
    await store.register(nodeEntry('n'), 1000)
    expect((await beatOf(store)).isKnown).toBe(true)
    await store.journalPut('r{x}', 'n', 'q', 1000)
    await store.journalAppend('r{x}', 0, 0, [1], 1000)
    expect((await store.journalGet('r{x}'))?.tokens).toEqual([[1]])
    await store.close()
  })

  test('behind a Sentinel the master is found', async () => {
    const redis = await redisForTest()
    const sentinel = await startSentinel(redis.port)
    onTestFinished(() => sentinel.stop())
    const url = `redis-sentinel://127.0.0.1:${sentinel.port}/main`
    const store = await openRedisStore({ url, cluster: 'c' })
    await store.register(nodeEntry('n'), 1000)
    expect((await beatOf(store)).isKnown).toBe(true)
    await store.close()
  })
})

/** Ends with the test, passed or not. */
async function redisForTest(settings: readonly string[] = []): Promise<TestRedis> {
  const redis = await startRedis(settings)
  onTestFinished(() => redis.stop())
  return redis
}

function beatOf(store: Store) {
  return store.beat({ id: 'n', incarnation: 'a', leaseMs: 1000, status: null, gauges: noGauges, cursor: null })
}

async function untilReachable<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work()
    } catch (thrown) {
      if (attempt === 100) throw thrown
      await wait(50)
    }
  }
}

async function claimAllSlots(port: number): Promise<void> {
  const client = new Redis({ port, host: '127.0.0.1' })
  await client.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383')
  for (;;) {
    if (String(await client.call('CLUSTER', 'INFO')).includes('cluster_state:ok')) break
    await wait(20)
  }
  client.disconnect()
}
