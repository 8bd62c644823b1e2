import { describe, expect, test } from 'vitest'
import { encodeHeld } from '../../services/cluster/held.ts'
import { createMembership, type Membership } from '../../services/cluster/membership.ts'
import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import { emptyStatus, type NodeRecord, noGauges } from '../../services/cluster/node.ts'
import type { Store } from '../../services/cluster/store.ts'
import type { ClusterStatus } from '../../services/coordinator/cluster-view.ts'
import { KubernetesLink } from '../../services/coordinator/kubernetes.ts'
import type { KubernetesApi, Pod, PodChange } from '../../services/kubernetes/api.ts'
import { settingsSchema } from '../../services/kubernetes/settings.ts'

const set = 'moesh-expert-default'
const settings = settingsSchema.parse({
  namespace: 'llm',
  podSelector: 'app.kubernetes.io/instance=moesh',
  hints: true,
  groups: [{ name: 'default', statefulSet: set, minReplicas: 1, maxReplicas: 2 }],
  policy: {
    busyHigh: 0.8,
    busyLow: 0.5,
    queueMsHigh: 50,
    memoryHigh: 0.9,
    upAfterSeconds: 0,
    downAfterSeconds: 0,
    coolDownSeconds: 0,
    drainSeconds: 120,
  },
})

/** A StatefulSet in which every pod is ready at once and has the address 10.0.0.ORDINAL. */
class FakeKubernetes implements KubernetesApi {
  wanted = 2
  unschedulable: Pod['unschedulable'] = null
  readonly events: string[] = []
  tell: (change: PodChange) => void = () => {}

  async replicas(): Promise<number> {
    return this.wanted
  }

  async scale(_: string, from: number, to: number): Promise<void> {
    expect(from).toBe(this.wanted)
    this.wanted = to
  }

  async explain(_: string, { reason }: { reason: string }): Promise<void> {
    this.events.push(reason)
  }

  async pods(): Promise<readonly Pod[]> {
    return Array.from({ length: this.wanted }, (_, ordinal) => this.pod(ordinal))
  }

  async watchPods(_: string, onChange: (change: PodChange) => void, signal: AbortSignal): Promise<void> {
    this.tell = onChange
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
  }

  async zoneOf(): Promise<undefined> {
    return undefined
  }

  pod(ordinal: number): Pod {
    return {
      uid: `uid-${ordinal}`,
      name: `${set}-${ordinal}`,
      ip: `10.0.0.${ordinal}`,
      owner: set,
      component: 'expert',
      isReady: true,
      isLeaving: false,
      unschedulable: this.unschedulable,
    }
  }
}

const clock = { nowMs: () => performance.now(), after: () => ({ cancel: () => {} }) }

function record(id: string, role: NodeRecord['role'], address: string): NodeRecord {
  return {
    id,
    incarnation: 'a',
    role,
    address,
    zone: '',
    memoryBytes: 1000,
    ranks: 1,
    provider: 'cpu',
    numerics: 'test',
    protocolVersion: 1,
    version: '0',
    modelDigest: '',
  }
}

/** Two expert nodes in pods, and a coordinator that leads. */
class World {
  nowMs = 0
  readonly api = new FakeKubernetes()
  readonly store: Store = createMemoryStore({ nowMs: () => this.nowMs })
  readonly errors: unknown[] = []
  pokes = 0
  readonly membership: Membership = createMembership({
    store: this.store,
    self: record('c', 'coordinator', '10.0.1.0:50051'),
    clock,
    leaseMs: 1000,
    random: () => 0,
  })
  readonly link = this.coordinator()

  /** Another coordinator's link to the same Kubernetes and store. */
  coordinator(): KubernetesLink {
    return new KubernetesLink(this.api, settings, {
      store: this.store,
      membership: () => this.membership,
      controller: () => ({ isLeader: () => true, poke: () => this.pokes++ }),
      leaseMs: 1000,
      nowUnixMs: () => 0,
      report: (error) => this.errors.push(error),
    })
  }

  async node(ordinal: number, held: number[], busy = 0): Promise<void> {
    const id = `e${ordinal}`
    const status = {
      ...emptyStatus,
      state: 'ready' as const,
      usedBytes: 100,
      held: encodeHeld(new Map([[0, new Set(held)]])),
    }
    await this.store.register({ record: record(id, 'expert', `10.0.0.${ordinal}:50051`), status }, 1000)
    const gauges = { ...noGauges, busy }
    await this.store.beat({ id, incarnation: 'a', leaseMs: 1000, status, gauges, cursor: null })
  }

  /** The next beat of the coordinator, by which it sees what happened. */
  async look(): Promise<void> {
    await this.membership.start()
  }
}

describe('a coordinator in Kubernetes', () => {
  test('suspects the node whose pod was told to end, and looks at the placement at once', async () => {
    const world = new World()
    await world.node(0, [1])
    await world.node(1, [2])
    await world.look()
    world.link.start()
    world.api.tell({ kind: 'seen', pod: { ...world.api.pod(1), isLeaving: true } })
    expect([...world.link.suspects()]).toEqual(['e1'])
    expect(world.pokes).toBe(1)
    await world.link.close()
  })

  test('names pods that find no place, and why', async () => {
    const world = new World()
    world.api.wanted = 1
    world.api.unschedulable = { why: '1 Insufficient nvidia.com/gpu', sinceMs: 0 }
    const status = await world.link.explain({ nodes: [] as ClusterStatus['nodes'] } as ClusterStatus)
    expect(status.nodes).toMatchObject([
      { id: `${set}-0`, role: 'EXPERT', state: 'JOINING', reason: expect.stringContaining('nvidia.com/gpu') },
    ])
  })

  test('drains the last pod before the group shrinks; the next leader goes on; the mark goes with the node', async () => {
    const world = new World()
    await world.node(0, [1])
    await world.node(1, [2])
    await world.look()
    await world.link.round()
    expect(world.errors).toEqual([])
    await world.look()
    expect(world.membership.view().drained).toEqual(new Map([['e1', 'scaling']]))
    expect(world.api.wanted).toBe(2)

    await world.node(1, [])
    await world.look()
    await world.coordinator().round()
    expect(world.api.wanted).toBe(1)
    expect(world.api.events).toEqual(['Draining', 'ScaledDown'])
    const { events } = await world.store.readEvents(null, 10)
    expect(events.map(({ kind }) => kind)).toEqual(['scale.Draining', 'scale.ScaledDown'])

    await world.store.deregister('e1', 'a')
    // Until the store is no longer new: who is missing then is gone.
    for (const nowMs of [400, 800, 1200, 1600]) {
      world.nowMs = nowMs
      await world.look()
    }
    await world.coordinator().round()
    await world.look()
    expect(world.membership.view().drained.size).toBe(0)
    expect(world.errors).toEqual([])
  })

  test('says in an Event that a pod has found no place for ten seconds', async () => {
    const world = new World()
    world.api.unschedulable = { why: '1 Insufficient nvidia.com/gpu', sinceMs: -10_000 }
    await world.look()
    await world.link.round()
    await world.link.round()
    expect(world.api.events).toEqual(['Unschedulable', 'Unschedulable'])
  })

  test('grows with the load that nodes tell', async () => {
    const world = new World()
    world.api.wanted = 1
    await world.node(0, [1], 0.95)
    await world.look()
    await world.link.round()
    expect(world.errors).toEqual([])
    expect(world.api.wanted).toBe(2)
  })
})
