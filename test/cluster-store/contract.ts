import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type NodeEntry, noGauges } from '../../services/cluster/node.ts'
import type { Placement } from '../../services/cluster/placement.ts'
import type { Beat, Cursor, Store } from '../../services/cluster/store.ts'

/** A store under test, with its own time: `pass` lets it go by for the store and whoever waits for it. */
export type StoreUnderTest = { open(): Promise<Store>; pass(ms: number): Promise<void>; close(): Promise<void> }

const leaseMs = 300

export function nodeEntry(id: string, incarnation = 'a'): NodeEntry {
  return {
    record: {
      id,
      incarnation,
      role: 'expert',
      address: `${id}:1`,
      zone: '',
      memoryBytes: 1000,
      ranks: 1,
      provider: 'cpu',
      numerics: 'class',
      protocolVersion: 1,
      version: '1',
      modelDigest: '',
    },
    status: { state: 'ready', reason: '', usedBytes: 0, held: {}, epoch: 0 },
  }
}

export function placementOf(epoch: number, token: number): Placement {
  return {
    epoch,
    token,
    modelDigest: 'digest',
    numerics: 'class',
    createdUnixMs: 1,
    why: 'test',
    nodes: ['a', 'b'],
    layers: [
      {
        layer: 0,
        experts: [
          [0, 65536],
          [0, 32768, 1, 32768],
        ],
      },
    ],
  }
}

/** What every store promises; each test uses names of its own, so that one store serves all. */
export function storeContract(name: string, makeStore: () => Promise<StoreUnderTest>): void {
  describe(`${name} store`, () => {
    let under: StoreUnderTest
    let store: Store

    beforeAll(async () => {
      under = await makeStore()
      store = await under.open()
    })
    afterAll(async () => {
      await store.close()
      await under.close()
    })

    /** Other tests' nodes expire meanwhile: only changes of `ids` are looked at. */
    async function beat(id: string, cursor: Cursor | null = null, more: Partial<Beat> = {}) {
      return store.beat({ id, incarnation: 'a', leaseMs, status: null, gauges: noGauges, cursor, ...more })
    }

    /** Lets time go by in steps that keep the store awake, so that it is not taken for an outage. */
    async function pass(ms: number, living: string[]) {
      for (let left = ms; left > 0; left -= 100) {
        await under.pass(Math.min(100, left))
        for (const id of living) await beat(id)
      }
    }

    test('a registered node is listed with its record and status', async () => {
      const entry = nodeEntry('listed')
      await store.register(entry, leaseMs)
      const reply = await beat('listed')
      expect(reply.isKnown).toBe(true)
      expect(reply.isFull).toBe(true)
      expect(reply.nodes).toContainEqual(entry)
    })

    test('a node that never registered is not known', async () => {
      expect((await beat('stranger')).isKnown).toBe(false)
    })

    test('a second living node with the same id is refused, and the first one stays', async () => {
      await store.register(nodeEntry('twin', 'a'), leaseMs)
      await expect(store.register(nodeEntry('twin', 'b'), leaseMs)).rejects.toMatchObject({ code: 'NODE_ID_TAKEN' })
      await expect(store.register(nodeEntry('twin', 'a'), leaseMs)).resolves.toBeUndefined()
      expect((await beat('twin')).isKnown).toBe(true)
      expect((await beat('twin', null, { incarnation: 'b' })).isKnown).toBe(false)
    })

    test('an id is free again after its node has left or its lease has ended', async () => {
      await store.register(nodeEntry('reborn', 'a'), leaseMs)
      await store.deregister('reborn', 'b')
      await expect(store.register(nodeEntry('reborn', 'b'), leaseMs)).rejects.toMatchObject({ code: 'NODE_ID_TAKEN' })
      await store.deregister('reborn', 'a')
      await store.register(nodeEntry('reborn', 'b'), leaseMs)
      await under.pass(leaseMs + 50)
      await store.register(nodeEntry('reborn', 'c'), leaseMs)
      expect((await beat('reborn', null, { incarnation: 'c' })).isKnown).toBe(true)
    })

    test('a cursor sees what changed since, and only that', async () => {
      await store.register(nodeEntry('watcher'), leaseMs)
      await store.register(nodeEntry('watched'), leaseMs)
      const first = await beat('watcher')
      const status = { ...nodeEntry('watched').status, held: { 0: 'Aw==' }, usedBytes: 7 }
      await beat('watched', null, { status })
      const second = await beat('watcher', first.cursor)
      expect(second.isFull).toBe(false)
      expect(second.nodes).toEqual([{ record: nodeEntry('watched').record, status }])
      // The same status again is no change.
      await beat('watched', null, { status })
      const third = await beat('watcher', second.cursor)
      expect(third.nodes).toEqual([])
      expect(third.cursor).toEqual(second.cursor)
      await store.deregister('watched', 'a')
      const fourth = await beat('watcher', third.cursor)
      expect(fourth.left).toEqual([{ id: 'watched', expired: false }])
    })

    test('a cursor of another generation gets everything', async () => {
      await store.register(nodeEntry('traveller'), leaseMs)
      const { cursor } = await beat('traveller')
      const reply = await beat('traveller', { ...cursor, generation: cursor.generation - 1 })
      expect(reply.isFull).toBe(true)
      expect(reply.nodes.map(({ record }) => record.id)).toContain('traveller')
    })

    test('a silent node expires within its lease, one that beats does not', async () => {
      await store.register(nodeEntry('alive'), leaseMs)
      await store.register(nodeEntry('silent'), leaseMs)
      await pass(leaseMs, ['alive', 'silent'])
      const before = await beat('alive')
      await pass(leaseMs + 100, ['alive'])
      const after = await beat('alive', before.cursor)
      expect(after.left).toContainEqual({ id: 'silent', expired: true })
      expect(after.isKnown).toBe(true)
    })

    test('after a silence of everybody nobody expires for one lease', async () => {
      await store.register(nodeEntry('early'), leaseMs)
      await store.register(nodeEntry('late'), leaseMs)
      await pass(leaseMs, ['early', 'late'])
      const before = await beat('early')
      await under.pass(3 * leaseMs)
      const after = await beat('early', before.cursor)
      expect(after.graceMs).toBeGreaterThan(0)
      expect(after.isKnown).toBe(true)
      expect(after.left).toEqual([])
      expect((await beat('late')).isKnown).toBe(true)
    })

    test('gauges are those of the last beat', async () => {
      await store.register(nodeEntry('gauged'), leaseMs)
      await beat('gauged', null, { gauges: { ...noGauges, rowsPerSecond: 12.5 } })
      expect((await store.gauges()).get('gauged')).toEqual({ ...noGauges, rowsPerSecond: 12.5 })
    })

    test('one leads until it resigns or is silent; each change of leader has a greater token', async () => {
      const first = await store.lead('x', 'a', leaseMs)
      expect(first).toMatchObject({ id: 'x', incarnation: 'a' })
      expect((await store.lead('y', 'a', leaseMs)).id).toBe('x')
      expect((await store.lead('x', 'a', leaseMs)).token).toBe(first.token)
      expect((await beat('anybody')).leader).toMatchObject({ id: 'x', token: first.token })
      await store.resign('y', 'a')
      expect((await store.lead('y', 'a', leaseMs)).id).toBe('x')
      await store.resign('x', 'a')
      const second = await store.lead('y', 'a', leaseMs)
      expect(second.id).toBe('y')
      expect(second.token).toBeGreaterThan(first.token)
      await under.pass(leaseMs + 50)
      expect((await beat('anybody')).leader).toBeNull()
      const third = await store.lead('y', 'a', leaseMs)
      expect(third.token).toBeGreaterThan(second.token)
      await store.resign('y', 'a')
    })

    test('only the leader writes placements; a deposed one is refused', async () => {
      const old = await store.lead('old', 'a', leaseMs)
      await store.writeTarget(placementOf(1, old.token))
      await store.resign('old', 'a')
      await expect(store.writeTarget(placementOf(2, old.token))).rejects.toMatchObject({ code: 'NOT_LEADER' })
      const next = await store.lead('next', 'a', leaseMs)
      await expect(store.writeTarget(placementOf(2, old.token))).rejects.toMatchObject({ code: 'NOT_LEADER' })
      await expect(store.activate({ epoch: 1, token: old.token }, old.token)).rejects.toMatchObject({
        code: 'NOT_LEADER',
      })
      // What the one before had begun, the next one may finish.
      await store.activate({ epoch: 1, token: old.token }, next.token)
      await store.writeTarget(placementOf(2, next.token))
      await expect(store.activate({ epoch: 1, token: old.token }, next.token)).rejects.toMatchObject({
        code: 'NOT_LEADER',
      })
      const reply = await beat('anybody')
      expect(reply.target).toEqual({ epoch: 2, token: next.token })
      expect(reply.active).toEqual({ epoch: 1, token: old.token })
      await store.resign('next', 'a')
      await expect(store.activate(reply.target ?? { epoch: 0, token: 0 }, next.token)).rejects.toMatchObject({
        code: 'NOT_LEADER',
      })
    })

    test('a placement is read where it is not known yet', async () => {
      const { token } = await store.lead('reader', 'a', leaseMs)
      const target = placementOf(7, token)
      await store.writeTarget(target)
      await store.activate(target, token)
      expect(await store.readPlacement({ target: null, active: null })).toEqual({ target, active: target })
      expect(await store.readPlacement({ target, active: { epoch: 6, token } })).toEqual({
        target: null,
        active: target,
      })
      expect(await store.readPlacement({ target, active: target })).toEqual({ target: null, active: null })
      await store.resign('reader', 'a')
    })

    test('flags are set and cleared', async () => {
      await store.setDrained('n1', 'operator')
      await store.setDrained('n3', 'scaling')
      const before = await beat('anybody')
      await store.setSuspended('n2', 'wrong rows')
      await store.setSuspended('n2', 'wrong rows')
      const set = await beat('anybody')
      expect(set.drained).toEqual(
        new Map([
          ['n1', 'operator'],
          ['n3', 'scaling'],
        ]),
      )
      expect(set.suspended.get('n2')).toBe('wrong rows')
      await store.setDrained('n1', null)
      await store.setDrained('n3', null)
      await store.setSuspended('n2', null)
      const cleared = await beat('anybody')
      expect(cleared.drained.size).toBe(0)
      expect(cleared.suspended.has('n2')).toBe(false)
      // Who hears of neither knows by the count that there was something.
      await store.setSuspended('n2', null)
      expect([set.suspensions, cleared.suspensions].map((count) => count - before.suspensions)).toEqual([1, 2])
    })

    test('loads are those published last, for a while', async () => {
      const load = (rows: number) => ({ layers: [{ layer: 3, rowsPerSecond: [rows, 0.5] }] })
      await store.publishLoad('c1', load(1), leaseMs)
      await store.publishLoad('c1', load(2), leaseMs)
      await store.publishLoad('c2', load(3), 10 * leaseMs)
      expect(await store.loads()).toEqual(
        new Map([
          ['c1', load(2)],
          ['c2', load(3)],
        ]),
      )
      await under.pass(leaseMs + 50)
      expect(await store.loads()).toEqual(new Map([['c2', load(3)]]))
    })

    test('a journal entry gathers tokens without gaps, also from repeated batches', async () => {
      const keepMs = 60_000
      await store.journalAppend('r1', 0, 0, [1], keepMs)
      expect(await store.journalGet('r1')).toBeNull()
      await store.journalPut('r1', 'c1', '{"prompt":"ü"}', keepMs)
      await store.journalAppend('r1', 0, 0, [1, 2, 4_000_000_000], keepMs)
      await store.journalAppend('r1', 0, 2, [4_000_000_000, 5], keepMs)
      await store.journalAppend('r1', 0, 0, [1], keepMs)
      await store.journalAppend('r1', 0, 9, [9], keepMs)
      await store.journalAppend('r1', 2, 0, [7], keepMs)
      await store.journalResume('r1', 'c2', keepMs)
      expect(await store.journalGet('r1')).toEqual({
        request: '{"prompt":"ü"}',
        owner: 'c2',
        resumed: 1,
        tokens: [[1, 2, 4_000_000_000, 5], [], [7]],
      })
      await store.journalPut('r1', 'c3', 'again', keepMs)
      expect(await store.journalGet('r1')).toEqual({ request: 'again', owner: 'c3', resumed: 0, tokens: [] })
    })

    test('a journal entry is forgotten after its time', async () => {
      await store.journalPut('r2', 'c1', 'x', 100)
      await under.pass(200)
      expect(await store.journalGet('r2')).toBeNull()
    })

    test('cached prefixes are found per coordinator, as far as they go without a gap', async () => {
      await store.kvAnnounce('c1', ['b0', 'b1', 'b3'], 60_000)
      await store.kvAnnounce('c2', ['b0', 'b1', 'b2'], 60_000)
      await store.kvAnnounce('c3', ['b0'], 100)
      await store.kvForget('c2', ['b2'])
      await under.pass(200)
      const found = await store.kvFind(['c1', 'c2', 'c3', 'c4'], ['b0', 'b1', 'b2', 'b3'])
      expect(found).toEqual(
        new Map([
          ['c1', 2],
          ['c2', 2],
          ['c3', 0],
          ['c4', 0],
        ]),
      )
    })

    test('events are read from the last ones on, each once', async () => {
      const event = (text: string) => ({ timeUnixMs: 5, kind: 'test', node: '', text, fields: { a: 'b' } })
      const start = await store.readEvents(null, 0)
      expect(start.events).toEqual([])
      await store.appendEvents([event('one'), event('two')])
      const first = await store.readEvents(start.cursor, 1)
      expect(first.events).toEqual([event('one')])
      const second = await store.readEvents(first.cursor, 10)
      expect(second.events).toEqual([event('two')])
      expect((await store.readEvents(second.cursor, 10)).events).toEqual([])
      await store.appendEvents([event('three')])
      expect((await store.readEvents(second.cursor, 10)).events).toEqual([event('three')])
      expect((await store.readEvents(null, 2)).events).toEqual([event('two'), event('three')])
    })

    test('many events: the oldest are forgotten', async () => {
      const events = Array.from({ length: 1500 }, (_, index) => ({
        timeUnixMs: index,
        kind: 'flood',
        node: '',
        text: '',
        fields: {},
      }))
      await store.appendEvents(events)
      const { events: kept } = await store.readEvents(null, 5000)
      expect(kept.length).toBeLessThan(1300)
      expect(kept.at(-1)).toEqual(events.at(-1))
    })

    test('a change calls those who listen for hints', async () => {
      const hinted = Promise.withResolvers<void>()
      const stop = store.onHint(() => hinted.resolve())
      // The subscription may take a moment, and hints from before it are lost: that is their nature.
      const again = setInterval(() => void store.setDrained('n3', 'operator'), 20)
      await hinted.promise
      clearInterval(again)
      stop()
      await store.setDrained('n3', null)
    })
  })
}
