import { describe, expect, it } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { type KubernetesApi, type Pod, readPod } from '../../services/kubernetes/api.ts'
import type { NodeLoad } from '../../services/kubernetes/autoscaler.ts'
import { type Leaving, watchLeavings } from '../../services/kubernetes/hints.ts'
import { type ClusterView, Scaler } from '../../services/kubernetes/scaler.ts'
import { type KubernetesSettings, settingsSchema } from '../../services/kubernetes/settings.ts'
import { resolveZone } from '../../services/kubernetes/zone.ts'

const set = 'moesh-expert-default'
const settings: KubernetesSettings = settingsSchema.parse({
  namespace: 'llm',
  podSelector: 'app.kubernetes.io/instance=moesh',
  hints: true,
  groups: [{ name: 'default', statefulSet: set, minReplicas: 2, maxReplicas: 4 }],
  policy: {
    busyHigh: 0.8,
    busyLow: 0.5,
    queueMsHigh: 50,
    memoryHigh: 0.9,
    upAfterSeconds: 10,
    downAfterSeconds: 60,
    coolDownSeconds: 30,
    drainSeconds: 120,
  },
})

/** A StatefulSet, its pods and the nodes in them, which do at once what they are told. */
class FakeCluster {
  replicas = 2
  busy = 0.6
  isLeading = true
  failing = ''
  readonly drained = new Set<string>()
  readonly events: string[] = []
  readonly errors: string[] = []

  readonly api: Pick<KubernetesApi, 'replicas' | 'scale' | 'explain' | 'pods'> = {
    replicas: async () => this.replicas,
    scale: async (_, from, to) => {
      if (this.failing === 'scale') throw new MoeshError('KUBERNETES_UNREACHABLE', 'forbidden')
      expect(from).toBe(this.replicas)
      this.replicas = to
    },
    explain: async (_, { reason }) => {
      if (this.failing === 'explain') throw new MoeshError('KUBERNETES_UNREACHABLE', 'forbidden')
      this.events.push(reason)
    },
    pods: async () => [...Array(this.replicas).keys()].map((index) => this.#pod(index)),
  }

  readonly view: ClusterView = {
    isLeader: () => this.isLeading,
    expertNodes: () => [...Array(this.replicas).keys()].map((index) => this.#node(index)),
    drainToScale: async (nodeId) => void this.drained.add(nodeId),
    undrain: async (nodeId) => void this.drained.delete(nodeId),
  }

  readonly scaler = new Scaler(this.api, settings, this.view, (error) => this.errors.push(error.message))

  async run(fromSeconds: number, seconds: number): Promise<void> {
    for (let at = fromSeconds; at < fromSeconds + seconds; at += 5) await this.scaler.round(at * 1000)
  }

  #pod(index: number): Pod {
    return {
      uid: `uid-${index}`,
      name: `${set}-${index}`,
      ip: `10.0.0.${index}`,
      owner: set,
      component: 'expert',
      isReady: true,
      isLeaving: false,
      unschedulable: null,
    }
  }

  #node(index: number): NodeLoad & { host: string } {
    const nodeId = `n${index}`
    return {
      nodeId,
      host: `10.0.0.${index}`,
      state: this.drained.has(nodeId) ? 'drained' : 'serving',
      isDrainedToScale: this.drained.has(nodeId),
      busy: this.busy,
      queueMs: 0,
      memoryBytes: 1000,
      usedBytes: 100,
    }
  }
}

describe('the scaler', () => {
  it('grows from 2 to 4 under load and shrinks to 2 when it is gone, one explained step at a time', async () => {
    const cluster = new FakeCluster()
    cluster.busy = 0.95
    await cluster.run(0, 200)
    expect(cluster.replicas).toBe(4)
    cluster.busy = 0.1
    await cluster.run(200, 400)
    expect(cluster.replicas).toBe(2)
    expect(cluster.events).toEqual([
      'ScaledUp',
      'ScaledUp',
      'AtMaximum',
      'Draining',
      'ScaledDown',
      'Draining',
      'ScaledDown',
    ])
    expect(cluster.errors).toEqual([])
  })

  it('does nothing on a follower, and a new leader first waits', async () => {
    const cluster = new FakeCluster()
    cluster.busy = 0.95
    cluster.isLeading = false
    await cluster.run(0, 200)
    expect(cluster.replicas).toBe(2)
    cluster.isLeading = true
    await cluster.run(200, 30)
    expect(cluster.replicas).toBe(2)
    await cluster.run(230, 5)
    expect(cluster.replicas).toBe(3)
  })

  it('reports a step that failed and takes it when it can', async () => {
    const cluster = new FakeCluster()
    cluster.busy = 0.95
    cluster.failing = 'scale'
    await cluster.run(0, 100)
    expect(cluster.replicas).toBe(2)
    expect(cluster.errors.length).toBeGreaterThan(1)
    expect(cluster.events).toEqual([])
    cluster.failing = 'explain'
    await cluster.run(100, 5)
    expect(cluster.replicas).toBe(3)
  })
})

describe('settings', () => {
  it('refuses what it does not know, and bounds out of order', () => {
    expect(() => settingsSchema.parse({ ...settings, more: 1 })).toThrow(/more/)
    const crossed = { ...settings, groups: [{ name: 'a', statefulSet: 'a', minReplicas: 3, maxReplicas: 2 }] }
    expect(() => settingsSchema.parse(crossed)).toThrow(/must not be more than maxReplicas/)
  })
})

describe('a pod', () => {
  it('is read from what Kubernetes sends', () => {
    const raw = {
      metadata: {
        uid: 'u',
        name: `${set}-1`,
        labels: { 'app.kubernetes.io/component': 'expert' },
        deletionTimestamp: '2026-01-01T00:00:00Z',
        ownerReferences: [{ kind: 'StatefulSet', name: set }],
      },
      status: { podIP: '10.0.0.1', conditions: [{ type: 'Ready', status: 'True' }] },
    }
    expect(readPod(raw)).toEqual({
      uid: 'u',
      name: `${set}-1`,
      ip: '10.0.0.1',
      owner: set,
      component: 'expert',
      isReady: true,
      isLeaving: true,
      unschedulable: null,
    })
  })

  it('that finds no node says why', () => {
    const why = '0/1 nodes are available: 1 Insufficient nvidia.com/gpu.'
    const conditions = [
      {
        type: 'PodScheduled',
        status: 'False',
        reason: 'Unschedulable',
        message: why,
        lastTransitionTime: '1970-01-01T00:00:05Z',
      },
    ]
    expect(readPod({ status: { conditions } }).unschedulable).toEqual({ why, sinceMs: 5000 })
  })

  it('of any other shape is one that is not ready', () => {
    for (const raw of [undefined, null, 7, {}, { metadata: {} }]) expect(readPod(raw).isReady).toBe(false)
  })
})

describe('hints', () => {
  it('tell once that a pod is told to end and once that it is gone, over broken watches', async () => {
    const stop = new AbortController()
    const leavings: Leaving[] = []
    const errors: string[] = []
    const pod = (more: Partial<Pod>): Pod => ({
      uid: 'u',
      name: 'p',
      ip: '10.0.0.1',
      owner: set,
      component: 'expert',
      isReady: true,
      isLeaving: false,
      unschedulable: null,
      ...more,
    })
    let round = 0
    const api: Pick<KubernetesApi, 'watchPods'> = {
      watchPods: async (selector, onChange) => {
        expect(selector).toBe('a=b')
        round += 1
        if (round === 1) {
          onChange({ kind: 'seen', pod: pod({}) })
          onChange({ kind: 'seen', pod: pod({ isLeaving: true }) })
          onChange({ kind: 'seen', pod: pod({ isLeaving: true }) })
        }
        if (round === 2) throw new Error('connection reset')
        if (round === 3) {
          onChange({ kind: 'seen', pod: pod({ isLeaving: true }) })
          onChange({ kind: 'gone', pod: pod({ isLeaving: true }) })
          stop.abort()
        }
      },
    }
    await watchLeavings(
      api,
      'a=b',
      (leaving) => leavings.push(leaving),
      (error) => errors.push(error.message),
      stop.signal,
      { first: 1, most: 2 },
    )
    expect(leavings.map(({ kind }) => kind)).toEqual(['told', 'gone'])
    expect(errors).toEqual(['connection reset'])
  })
})

describe('a zone', () => {
  const api = { zoneOf: async (name: string) => (name === 'node-1' ? 'zone-a' : undefined) }
  it.each([
    [undefined, undefined],
    ['', undefined],
    ['rack-7', 'rack-7'],
    ['kubernetes://node-1', 'zone-a'],
    ['kubernetes://node-2', undefined],
  ])('%s is %s', async (given, expected) => {
    expect(
      await resolveZone(
        given,
        async () => api,
        () => {},
      ),
    ).toBe(expected)
  })

  it('that can not be asked for is none, and is reported', async () => {
    const errors: string[] = []
    const connect = () => Promise.reject(new Error('no service account'))
    expect(await resolveZone('kubernetes://n', connect, (error) => errors.push(error.message))).toBeUndefined()
    expect(errors).toEqual(['no service account'])
  })
})
