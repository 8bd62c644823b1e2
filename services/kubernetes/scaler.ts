import type { KubernetesApi, Pod } from './api.ts'
import { type Action, decide, type GroupState, initialState, type NodeLoad, type Observation } from './autoscaler.ts'
import type { KubernetesSettings, ScaledGroup } from './settings.ts'

/** What the leader knows of the cluster, and what it can do there. */
export interface ClusterView {
  /** Only the leader scales; asked before every round. */
  isLeader(): boolean
  /** Every expert node, with the host of the address that its peers dial. */
  expertNodes(): readonly (NodeLoad & { readonly host: string })[]
  /** Moves everything off the node; the mark stays with the node, so that another leader knows why. */
  drainToScale(nodeId: string): Promise<void>
  undrain(nodeId: string): Promise<void>
}

/**
 * The hands of the autoscaler: looks at pods and nodes, lets `decide` choose, carries it out. A step that fails is
 * reported and tried again in the next round, because it is decided again from what is seen then.
 */
export class Scaler {
  readonly #api: Pick<KubernetesApi, 'replicas' | 'scale' | 'explain' | 'pods'>
  readonly #settings: KubernetesSettings
  readonly #cluster: ClusterView
  readonly #report: (error: Error) => void
  readonly #states = new Map<string, GroupState>()

  constructor(
    api: Pick<KubernetesApi, 'replicas' | 'scale' | 'explain' | 'pods'>,
    settings: KubernetesSettings,
    cluster: ClusterView,
    report: (error: Error) => void,
  ) {
    this.#api = api
    this.#settings = settings
    this.#cluster = cluster
    this.#report = report
  }

  /** One look at every group; call it every few seconds, one round at a time. `nowMs`: unix time, as Kubernetes has it. */
  async round(nowMs: number): Promise<void> {
    if (!this.#cluster.isLeader()) {
      this.#states.clear() // what a former leader remembers is stale by the time it leads again
      return
    }
    if (this.#settings.groups.length === 0) return
    try {
      const pods = await this.#api.pods(this.#settings.podSelector)
      for (const group of this.#settings.groups) await this.#scaleGroup(group, pods, nowMs)
    } catch (thrown) {
      this.#report(thrown instanceof Error ? thrown : new Error(String(thrown)))
    }
  }

  async #scaleGroup(group: ScaledGroup, pods: readonly Pod[], nowMs: number): Promise<void> {
    const replicas = await this.#api.replicas(group.statefulSet)
    const seen = observe(group, replicas, pods, this.#cluster.expertNodes(), nowMs)
    const before = this.#states.get(group.name) ?? initialState(nowMs)
    const { state, actions } = decide(this.#settings.policy, group, before, seen)
    for (const action of actions) await this.#act(group, action)
    // Only now: after a failure the same is decided again.
    this.#states.set(group.name, state)
  }

  async #act(group: ScaledGroup, action: Action): Promise<void> {
    switch (action.kind) {
      case 'scale':
        return this.#api.scale(group.statefulSet, action.from, action.to)
      case 'drain':
        return this.#cluster.drainToScale(action.nodeId)
      case 'undrain':
        return this.#cluster.undrain(action.nodeId)
      case 'explain':
        // A step that was taken stays taken, whether or not it could be explained.
        return this.#api.explain(group.statefulSet, action.explanation).catch(this.#report)
    }
  }
}

/** The pods of a group with the nodes that run in them; a pod and a node belong together by their address. */
export function observe(
  group: ScaledGroup,
  replicas: number,
  pods: readonly Pod[],
  nodes: readonly (NodeLoad & { readonly host: string })[],
  nowMs: number,
): Observation {
  const byHost = new Map(nodes.filter(({ state }) => state !== 'lost').map((node) => [node.host, node]))
  return {
    nowMs,
    replicas,
    pods: pods
      .filter(({ owner }) => owner === group.statefulSet)
      .map((pod) => ({
        name: pod.name,
        ordinal: Number(pod.name.slice(pod.name.lastIndexOf('-') + 1)),
        isReady: pod.isReady,
        isLeaving: pod.isLeaving,
        unschedulable: pod.unschedulable,
        node: byHost.get(pod.ip) ?? null,
      })),
  }
}
