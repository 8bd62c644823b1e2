import { expect, onTestFinished, test } from 'vitest'
import { decodeHeld } from '../../services/cluster/held.ts'
import { createMembership } from '../../services/cluster/membership.ts'
import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import type { NodeRecord, NodeStatus } from '../../services/cluster/node.ts'
import { MoeshError } from '../../services/config/errors.ts'
import { Assigned } from '../../services/expert/assigned.ts'
import type { ShardId } from '../../services/expert/host.ts'
import { FakeClock } from '../cluster/fake-clock.ts'
import { FakeHost } from '../dispatch/fake-host.ts'

const record = (id: string): NodeRecord => ({
  id,
  incarnation: '1',
  role: 'expert',
  address: `${id}:1`,
  zone: '',
  memoryBytes: 1e9,
  ranks: 1,
  provider: 'cpu',
  numerics: 'n1',
  protocolVersion: 1,
  version: '',
  modelDigest: '',
})

/** A node `me` beside another one, and a leader's hand on the placement. */
async function joined() {
  const clock = new FakeClock()
  const store = createMemoryStore({ nowMs: () => clock.nowMs() })
  const members = ['me', 'other'].map((id) =>
    createMembership({ store, self: record(id), clock, leaseMs: 3000, random: () => 0 }),
  )
  const [membership, other] = members
  if (!membership || !other) throw new Error('no members')
  const host = new FakeHost('f32', 6)
  const got: string[] = []
  const released: string[] = []
  const refused = new Map<string, MoeshError>()
  const sources = {
    get: async (shard: ShardId) => {
      const name = `${shard.layer}/${shard.expert}`
      const error = refused.get(name)
      if (error) throw error
      got.push(name)
      const source = { ...shard, path: name, offset: 0, bytes: 1 }
      return { source, release: async () => void released.push(name) }
    },
  }
  const assigned = new Assigned({ nodeId: 'me', host, store, membership, sources, clock, log: { warn: () => {} } })
  const { token } = await store.lead('other', '1', 1e9)
  let epoch = 0
  /** Experts of layer 0 that each node shall hold. */
  const place = async (homes: Record<string, number[]>, activate = true) => {
    epoch += 1
    const nodes = Object.keys(homes)
    const experts = Array.from({ length: 64 }, (_, expert) =>
      nodes.flatMap((node, index) => (homes[node]?.includes(expert) ? [index, 1] : [])),
    )
    await store.writeTarget({
      epoch,
      token,
      modelDigest: '',
      numerics: 'n1',
      createdUnixMs: 0,
      why: '',
      nodes,
      layers: [{ layer: 0, experts }],
    })
    if (activate) await store.activate({ epoch, token }, token)
  }
  const status = (): NodeStatus => {
    const seen = other.view().nodes.get('me')?.status
    if (!seen) throw new Error('not seen')
    return seen
  }
  const told = () => [...(decodeHeld(status().held).get(0) ?? [])].sort((a, b) => a - b)
  const held = () => [...(host.held().get(0) ?? [])].sort((a, b) => a - b)
  await membership.start()
  await other.start()
  assigned.start()
  onTestFinished(async () => {
    await assigned.stop()
    await Promise.all(members.map((member) => member.stop()))
  })
  return { clock, host, assigned, place, status, told, held, got, released, refused }
}

test('a node loads what the target wants, and says what it holds and which epoch that is', async () => {
  const { clock, assigned, place, status, told, held, released } = await joined()
  await clock.advance(2000)
  expect(status()).toMatchObject({ state: 'joining', reason: 'waiting for a placement', epoch: 0 })
  expect(assigned.isSettled()).toBe(false)
  await place({ me: [1, 5], other: [2] }, false)
  await clock.advance(3000)
  await assigned.ready
  expect(held()).toEqual([1, 5])
  expect(told()).toEqual([1, 5])
  expect(status()).toMatchObject({ state: 'ready', reason: '', epoch: 1 })
  expect(released).toEqual(['0/1', '0/5'])
})

test('what a new placement no longer names stays until it is active, is told first, and then goes', async () => {
  const { clock, place, told, held } = await joined()
  await place({ me: [1, 2] })
  await clock.advance(3000)
  await place({ me: [2, 3], other: [1] }, false)
  await clock.advance(5000)
  expect(held()).toEqual([1, 2, 3])
  expect(told()).toEqual([1, 2, 3])
  await place({ me: [2, 3], other: [1] })
  const seen: string[] = []
  for (let i = 0; i < 50; i++) {
    await clock.advance(100)
    const now = `${told()} of ${held()}`
    if (seen.at(-1) !== now) seen.push(now)
  }
  expect(seen).toEqual(['1,2,3 of 1,2,3', '2,3 of 1,2,3', '2,3 of 2,3'])
})

test('a placement that brings a shard back in time keeps it', async () => {
  const { clock, place, told, held, got } = await joined()
  await place({ me: [1, 2] })
  await clock.advance(3000)
  await place({ me: [2], other: [1] })
  while (told().length > 1) await clock.advance(50)
  await place({ me: [1, 2] })
  await clock.advance(5000)
  expect(held()).toEqual([1, 2])
  expect(told()).toEqual([1, 2])
  expect(got).toEqual(['0/1', '0/2'])
})

test('a shard that cannot be had is said, tried again, and holds nothing else up for ever', async () => {
  const { clock, place, status, held, refused } = await joined()
  refused.set('0/7', new MoeshError('NODE_LOST', 'nobody has it'))
  await place({ me: [7, 20] })
  await clock.advance(3000)
  expect(status()).toMatchObject({ state: 'joining', reason: 'nobody has it', epoch: 0 })
  refused.clear()
  await clock.advance(3000)
  expect(held()).toEqual([7, 20])
  expect(status()).toMatchObject({ state: 'ready', reason: '', epoch: 1 })
})

test('a new placement ends a pass that loads for the old one', async () => {
  const { clock, host, place, held, got } = await joined()
  let finish = () => {}
  const load = host.load.bind(host)
  host.load = async (shards) => {
    await new Promise<void>((resolve) => {
      finish = resolve
    })
    await load(shards)
  }
  const many = Array.from({ length: 60 }, (_, expert) => expert)
  await place({ me: many })
  await clock.advance(3000)
  expect(got.length).toBe(16)
  await place({ me: [0, 63] })
  await clock.advance(3000)
  finish()
  await clock.advance(10)
  // Not one of the other 44, but what is wanted now.
  expect(got.slice(16)).toEqual(['0/63'])
  finish()
  await clock.advance(5000)
  expect(held()).toEqual([0, 63])
})

test('a leaving node waits until everything is moved off', async () => {
  const { clock, assigned, place, status, held } = await joined()
  await place({ me: [1, 2], other: [1] })
  await clock.advance(3000)
  let isGone = false
  const gone = assigned.leave(new AbortController().signal).then(() => {
    isGone = true
  })
  await clock.advance(5000)
  expect(status().state).toBe('leaving')
  expect(isGone).toBe(false)
  await place({ other: [1, 2] })
  await clock.advance(5000)
  await gone
  expect(held()).toEqual([])
})

test('a leaving node does not wait beyond its deadline', async () => {
  const { clock, assigned, place, held } = await joined()
  await place({ me: [1] })
  await clock.advance(3000)
  const deadline = new AbortController()
  const gone = assigned.leave(deadline.signal)
  await clock.advance(1000)
  deadline.abort()
  await clock.advance(100)
  await gone
  expect(held()).toEqual([1])
})

test('an idle node repairs what is lost of its shards, and what the cluster believes of them', async () => {
  const { clock, host, place, told, held } = await joined()
  await place({ me: [1, 2], other: [3] })
  await clock.advance(3000)
  await host.unload([{ layer: 0, expert: 1 }])
  await clock.advance(11_000)
  expect(held()).toEqual([1, 2])
  await host.load([{ layer: 0, expert: 7 }])
  await clock.advance(15_000)
  expect(held()).toEqual([1, 2])
  expect(told()).toEqual([1, 2])
})
