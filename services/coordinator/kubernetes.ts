import type { Controller } from '../cluster/controller.ts'
import { countHeld, decodeHeld } from '../cluster/held.ts'
import type { Membership } from '../cluster/membership.ts'
import { type NodeEntry, type NodeGauges, noGauges } from '../cluster/node.ts'
import type { Store } from '../cluster/store.ts'
import type { ClusterView as MembershipView } from '../cluster/view.ts'
import { connectKubernetes, type KubernetesApi, type Pod } from '../kubernetes/api.ts'
import type { NodeLoad } from '../kubernetes/autoscaler.ts'
import { type Leaving, watchLeavings } from '../kubernetes/hints.ts'
import { type ClusterView, Scaler } from '../kubernetes/scaler.ts'
import { type KubernetesSettings, readKubernetesSettings } from '../kubernetes/settings.ts'
import type { ClusterStatus, NodeStatus } from './cluster-view.ts'

export type KubernetesLinkOptions = {
  store: Store
  /** By name, because the coordinator makes them after its API, which needs this. */
  membership: () => Membership
  controller: () => Pick<Controller, 'isLeader' | 'poke'>
  leaseMs: number
  nowUnixMs: () => number
  report: (error: unknown) => void
}

/** A pass of the scaler. Its rules count in tens of seconds, and a pass costs the API server two requests a group. */
const roundEveryMs = 5000
/** Pods are listed for a status at most this often, whoever asks. */
const podsKeepMs = 2000
/** Pods without a node that a status names. */
const waitingPodsMax = 64

/** `--kubernetes FILE`. Errors: USAGE, KUBERNETES_UNREACHABLE where the pod has no service account. */
export async function openKubernetes(file: string, options: KubernetesLinkOptions): Promise<KubernetesLink> {
  const settings = await readKubernetesSettings(file)
  return new KubernetesLink(await connectKubernetes(settings.namespace), settings, options)
}

/**
 * What a coordinator has to do with Kubernetes: it hears of pods that go, says why others do not come, and as the leader
 * chooses how many there are. Nothing waits for it: without an API server the cluster serves on with the nodes it has.
 */
export class KubernetesLink {
  readonly #api: KubernetesApi
  readonly #settings: KubernetesSettings
  readonly #options: KubernetesLinkOptions
  readonly #scaler: Scaler
  readonly #stopped = new AbortController()
  /** Node id → until when its pod's end is a reason to plan around it, as `performance.now()`. */
  readonly #suspects = new Map<string, number>()
  #gauges: ReadonlyMap<string, NodeGauges> = new Map()
  #pods: { readonly atMs: number; readonly list: Promise<readonly Pod[]> } | null = null
  #timer: NodeJS.Timeout | null = null
  #round: Promise<void> = Promise.resolve()

  constructor(api: KubernetesApi, settings: KubernetesSettings, options: KubernetesLinkOptions) {
    this.#api = api
    this.#settings = settings
    this.#options = options
    this.#scaler = new Scaler(this.#telling(), settings, this.#cluster(), options.report)
  }

  /** When the membership has begun. */
  start(): void {
    const { hints, podSelector, groups } = this.#settings
    const { report } = this.#options
    if (hints) {
      const hear = (leaving: Leaving) => this.#hear(leaving)
      void watchLeavings(this.#api, podSelector, hear, report, this.#stopped.signal)
    }
    if (groups.length > 0) this.#scheduleRound()
  }

  async close(): Promise<void> {
    this.#stopped.abort()
    if (this.#timer !== null) clearTimeout(this.#timer)
    await this.#round
  }

  /** Nodes whose pods were told to end. A lease that still runs after two of them was right, and the hint was wrong. */
  suspects(): ReadonlySet<string> {
    const nowMs = performance.now()
    for (const [id, untilMs] of this.#suspects) if (untilMs < nowMs) this.#suspects.delete(id)
    return new Set(this.#suspects.keys())
  }

  /** Adds the pods that Kubernetes finds no place for: they are no nodes yet, and the question is why. */
  async explain(status: ClusterStatus): Promise<ClusterStatus> {
    try {
      const waiting = (await this.#listPods()).filter(({ unschedulable }) => unschedulable !== null)
      return { ...status, nodes: [...status.nodes, ...waiting.slice(0, waitingPodsMax).flatMap(waitingPod)] }
    } catch {
      // The API server's absence is reported by the watch; a status is about the cluster.
      return status
    }
  }

  /** The leader looks at every group that it may scale, and takes at most one step in each. */
  async round(): Promise<void> {
    const { store, membership, controller, nowUnixMs } = this.#options
    if (controller().isLeader()) {
      this.#gauges = await store.gauges()
      const view = membership().view()
      // The node that a smaller group no longer has will not come back: every pod's process has an id of its own.
      for (const [id, by] of view.drained) {
        if (by === 'scaling' && !view.nodes.has(id) && !view.isSettling) await store.setDrained(id, null)
      }
    }
    // Kubernetes' own times, since when a pod waits, are of the same clock.
    await this.#scaler.round(nowUnixMs())
  }

  #hear({ ip }: Leaving): void {
    const { membership, controller, leaseMs } = this.#options
    for (const { record } of membership().view().nodes.values()) {
      if (record.role === 'expert' && ip !== '' && hostOf(record.address) === ip) {
        this.#suspects.set(record.id, performance.now() + 2 * leaseMs)
      }
    }
    controller().poke()
  }

  #listPods(): Promise<readonly Pod[]> {
    const nowMs = performance.now()
    if (this.#pods === null || nowMs - this.#pods.atMs > podsKeepMs) {
      this.#pods = { atMs: nowMs, list: this.#api.pods(this.#settings.podSelector) }
    }
    return this.#pods.list
  }

  #scheduleRound(): void {
    this.#timer = setTimeout(() => {
      this.#round = this.round()
        .catch(this.#options.report)
        .finally(() => {
          if (!this.#stopped.signal.aborted) this.#scheduleRound()
        })
    }, roundEveryMs).unref()
  }

  #cluster(): ClusterView {
    const { store, membership, controller } = this.#options
    return {
      isLeader: () => controller().isLeader(),
      expertNodes: () => {
        const view = membership().view()
        return [...view.nodes.values()]
          .filter(({ record }) => record.role === 'expert')
          .map((entry) => nodeLoad(entry, view, this.#gauges.get(entry.record.id) ?? noGauges))
      },
      drainToScale: async (nodeId) => {
        await store.setDrained(nodeId, 'scaling')
        controller().poke()
      },
      undrain: async (nodeId) => {
        await store.setDrained(nodeId, null)
        controller().poke()
      },
    }
  }

  /** Every step is an event of the cluster too: `moesh` users see it without a right to read Kubernetes' Events. */
  #telling(): ConstructorParameters<typeof Scaler>[0] {
    const { store, nowUnixMs } = this.#options
    return {
      replicas: (statefulSet) => this.#api.replicas(statefulSet),
      scale: (statefulSet, from, to) => this.#api.scale(statefulSet, from, to),
      pods: (selector) => this.#api.pods(selector),
      explain: async (statefulSet, explanation) => {
        const kind = `scale.${explanation.reason}`
        const text = `${statefulSet}: ${explanation.message}`.slice(0, 4000)
        await store.appendEvents([{ timeUnixMs: nowUnixMs(), kind, node: '', text, fields: {} }]).catch(() => {})
        await this.#api.explain(statefulSet, explanation)
      },
    }
  }
}

function nodeLoad(
  { record, status }: NodeEntry,
  view: MembershipView,
  { busy, queueMs }: NodeGauges,
): NodeLoad & { host: string } {
  const isDrained = view.drained.has(record.id)
  const isGoing = isDrained || status.state === 'leaving' || view.suspended.has(record.id)
  const isEmpty = countHeld(decodeHeld(status.held)) === 0
  return {
    nodeId: record.id,
    host: hostOf(record.address),
    state: isGoing ? (isDrained && isEmpty ? 'drained' : 'draining') : status.state === 'ready' ? 'serving' : 'joining',
    isDrainedToScale: view.drained.get(record.id) === 'scaling',
    busy,
    queueMs,
    memoryBytes: record.memoryBytes,
    usedBytes: status.usedBytes,
  }
}

function waitingPod({ name, component, unschedulable }: Pod): NodeStatus[] {
  if (component !== 'expert' && component !== 'coordinator') return []
  return [
    {
      id: name,
      role: component === 'expert' ? 'EXPERT' : 'COORDINATOR',
      state: 'JOINING',
      address: '',
      zone: '',
      memoryBytes: 0,
      usedBytes: 0,
      ranks: 0,
      shards: 0,
      provider: '',
      numerics: '',
      rowsPerSecond: 0,
      dispatchP50Ms: 0,
      dispatchP99Ms: 0,
      version: '',
      reason: `Kubernetes finds no place for this pod: ${unschedulable?.why ?? 'it does not say why'}`,
    },
  ]
}

/** Of HOST:PORT, as a pod's address is written. */
function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1')
}
