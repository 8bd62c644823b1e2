import { describe, expect, test } from 'vitest'
import { createElection } from '../../services/cluster/leader.ts'
import { createMembership, type Membership } from '../../services/cluster/membership.ts'
import { nodeEntry } from '../cluster-store/contract.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'

const leaseMs = 3000
/** Between two beats of a member of a small cluster. */
const beatGapMs = 250

class World {
  readonly clock = new FakeClock()
  readonly store = new FaultyStore(() => this.clock.nowMs())
  readonly changes: string[] = []
  #drawn = 0

  member(id: string, incarnation = 'a'): Membership {
    const entry = nodeEntry(id, incarnation)
    return createMembership({
      store: this.store.seenBy(id),
      self: entry.record,
      status: entry.status,
      clock: this.clock,
      leaseMs,
      random: () => (this.#drawn++ * 0.618) % 1,
    })
  }

  async joined(id: string): Promise<Membership> {
    const member = this.member(id)
    await member.start()
    return member
  }

  watch(member: Membership): void {
    member.onChange((changes) => {
      for (const change of changes) this.changes.push('id' in change ? `${change.kind} ${change.id}` : change.kind)
    })
  }
}

const ids = (member: Membership) => [...member.view().nodes.keys()].sort().join(' ')

describe('membership', () => {
  test('a node that joins or leaves is seen within a beat', async () => {
    const world = new World()
    const a = await world.joined('a')
    const b = await world.joined('b')
    await world.clock.advance(leaseMs / 3)
    expect(ids(a)).toBe('a b')
    await b.stop()
    await world.clock.advance(leaseMs / 3)
    expect(ids(a)).toBe('a')
    await a.stop()
  })

  test('a node that falls silent is lost within its lease and a beat', async () => {
    const world = new World()
    const a = await world.joined('a')
    await world.joined('b')
    await world.clock.advance(leaseMs)
    world.watch(a)
    world.store.cutOff.add('b')
    await world.clock.advance(leaseMs - leaseMs / 3 - 1)
    expect(ids(a)).toBe('a b')
    await world.clock.advance((leaseMs * 2) / 3)
    expect(ids(a)).toBe('a')
    expect(world.changes).toEqual(['lost b'])
  })

  test('a status is told to others', async () => {
    const world = new World()
    const a = await world.joined('a')
    const b = await world.joined('b')
    b.update({ ...nodeEntry('b').status, held: { 0: 'AQ==' } })
    await world.clock.advance(leaseMs / 3)
    expect(a.view().nodes.get('b')?.status.held).toEqual({ 0: 'AQ==' })
  })

  test('what changes while a beat is under way is heard with the next one, which does not wait for its turn', async () => {
    const world = new World()
    const a = await world.joined('a')
    world.store.delay = () => new Promise((resolve) => void world.clock.after(20, resolve))
    await world.clock.advance(2 * (leaseMs / 3) + 10)
    expect(world.store.calls.at(-1), 'its answer is on its way').toMatchObject({
      name: 'beat',
      atMs: 2 * (leaseMs / 3),
    })
    world.store.delay = null
    await world.store.seenBy('the operator').setDrained('b', 'operator')
    await world.clock.advance(10)
    expect([...a.view().drained.keys()], 'it was given before').toEqual([])
    await world.clock.advance(beatGapMs)
    expect([...a.view().drained.keys()]).toEqual(['b'])
  })

  // How many steps of promises a node takes to answer what it heard: some of these fall on the very end of the beat.
  test.each([0, 1, 2, 3])('a status that a beat caused, %i steps later, is told with the next one', async (steps) => {
    const world = new World()
    const a = await world.joined('a')
    const b = await world.joined('b')
    await world.clock.advance(leaseMs)
    b.onChange(async () => {
      for (let step = 0; step < steps; step++) await Promise.resolve()
      b.update({ ...nodeEntry('b').status, reason: 'heard' })
    })
    await world.store.seenBy('the operator').setDrained('b', 'operator')
    // Both hear, b tells, a hears: three beats.
    await world.clock.advance(3 * beatGapMs)
    expect(a.view().nodes.get('b')?.status.reason).toBe('heard')
  })

  test('a long outage costs nobody its membership', async () => {
    const world = new World()
    const members = [await world.joined('a'), await world.joined('b'), await world.joined('c')]
    await world.clock.advance(leaseMs)
    for (const member of members) world.watch(member)
    world.store.isAway = true
    await world.clock.advance(10 * leaseMs)
    expect(members.map((member) => member.view().isReachable)).toEqual([false, false, false])
    expect(members.map(ids)).toEqual(['a b c', 'a b c', 'a b c'])
    world.store.isAway = false
    await world.clock.advance(3 * leaseMs)
    expect(members.map(ids)).toEqual(['a b c', 'a b c', 'a b c'])
    expect(new Set(world.changes)).toEqual(new Set(['reachable']))
  })

  test('to a store that comes back empty everybody registers again, and nobody was ever gone', async () => {
    const world = new World()
    const members = [await world.joined('a'), await world.joined('b'), await world.joined('c')]
    members[1]?.update({ ...nodeEntry('b').status, held: { 0: 'AQ==' } })
    await world.clock.advance(leaseMs)
    for (const member of members) world.watch(member)
    world.store.isAway = true
    await world.clock.advance(leaseMs)
    world.store.restartEmpty()
    world.store.isAway = false
    await world.clock.advance(3 * leaseMs)
    expect(members.map(ids)).toEqual(['a b c', 'a b c', 'a b c'])
    expect(members[0]?.view().nodes.get('b')?.status.held).toEqual({ 0: 'AQ==' })
    expect(world.changes.filter((change) => /joined|lost|left/.test(change))).toEqual([])
  })

  test('who does not come back after the store did is lost then', async () => {
    const world = new World()
    const a = await world.joined('a')
    await world.joined('b')
    await world.clock.advance(leaseMs)
    world.store.cutOff.add('b')
    world.store.restartEmpty()
    await world.clock.advance(leaseMs / 2)
    expect(ids(a)).toBe('a b')
    await world.clock.advance(2 * leaseMs)
    expect(ids(a)).toBe('a')
  })

  test('many registrations after an outage are spread over time', async () => {
    const world = new World()
    for (let node = 0; node < 40; node++) await world.joined(`n${node}`)
    await world.clock.advance(leaseMs)
    world.store.restartEmpty()
    world.store.calls.length = 0
    await world.clock.advance(2 * leaseMs)
    const times = world.store.calls.filter(({ name }) => name === 'register').map(({ atMs }) => atMs)
    expect(times.length).toBe(40)
    const perTenth = new Map<number, number>()
    for (const atMs of times) perTenth.set(Math.floor(atMs / 100), (perTenth.get(Math.floor(atMs / 100)) ?? 0) + 1)
    expect(Math.max(...perTenth.values())).toBeLessThan(12)
  })

  test('a quiet cluster makes one call per node and beat', async () => {
    const world = new World()
    for (let node = 0; node < 10; node++) await world.joined(`n${node}`)
    await world.clock.advance(leaseMs)
    world.store.calls.length = 0
    await world.clock.advance(10 * leaseMs)
    expect(world.store.calls.length).toBeLessThanOrEqual(10 * 31)
  })

  test('a second living node with the same id is refused after a lease, and the first one stays', async () => {
    const world = new World()
    const first = await world.joined('a')
    const second = world.member('a', 'b').start()
    const refused = expect(second).rejects.toMatchObject({ code: 'NODE_ID_TAKEN' })
    await world.clock.advance(2 * leaseMs)
    await refused
    expect(first.view().nodes.get('a')?.record.incarnation).toBe('a')
  })

  test('a node that was killed and starts again takes its id back when the old lease ends', async () => {
    const world = new World()
    await world.joined('a')
    const witness = await world.joined('w')
    world.store.cutOff.add('a')
    const entry = nodeEntry('a', 'b')
    const again = createMembership({
      store: world.store.seenBy('a again'),
      self: entry.record,
      clock: world.clock,
      leaseMs,
      random: () => 0,
    })
    const isBack = again.start()
    await world.clock.advance(2 * leaseMs)
    await isBack
    expect(witness.view().nodes.get('a')?.record.incarnation).toBe('b')
  })

  test('a node that starts while the store is away joins when it is back', async () => {
    const world = new World()
    world.store.isAway = true
    const a = await world.joined('a')
    await world.clock.advance(leaseMs)
    world.store.isAway = false
    await world.clock.advance(leaseMs)
    expect(ids(a)).toBe('a')
  })
})

describe('election', () => {
  function candidates(world: World, names: string[]) {
    const log: string[] = []
    const elections = names.map((id) =>
      createElection({
        store: world.store.seenBy(id),
        self: { id, incarnation: 'a' },
        clock: world.clock,
        leaseMs,
        onChange: (token) => log.push(token === null ? `${id} ends` : `${id} leads`),
      }),
    )
    for (const election of elections) election.start()
    return { log, elections }
  }

  test('one of several leads, another one when it resigns', async () => {
    const world = new World()
    const { log, elections } = candidates(world, ['x', 'y'])
    await world.clock.advance(3 * leaseMs)
    expect(log).toEqual(['x leads'])
    const firstToken = elections[0]?.token() ?? 0
    await elections[0]?.stop()
    await world.clock.advance(leaseMs / 3)
    expect(log).toEqual(['x leads', 'x ends', 'y leads'])
    expect(elections[1]?.token()).toBeGreaterThan(firstToken)
  })

  test('a leader that is cut off stops to lead before another one begins', async () => {
    const world = new World()
    const { log } = candidates(world, ['x', 'y'])
    await world.clock.advance(leaseMs)
    world.store.cutOff.add('x')
    await world.clock.advance(1.5 * leaseMs)
    expect(log).toEqual(['x leads', 'x ends', 'y leads'])
    world.store.cutOff.delete('x')
    await world.clock.advance(2 * leaseMs)
    expect(log.length).toBe(3)
  })

  test('a short outage changes nothing', async () => {
    const world = new World()
    const { log } = candidates(world, ['x', 'y'])
    await world.clock.advance(leaseMs)
    world.store.isAway = true
    await world.clock.advance(leaseMs / 2)
    world.store.isAway = false
    await world.clock.advance(3 * leaseMs)
    expect(log).toEqual(['x leads'])
  })
})
