import { countHeld, decodeHeld } from '../cluster/held.ts'
import type { Membership } from '../cluster/membership.ts'
import type { NodeEntry, NodeGauges } from '../cluster/node.ts'
import type { Placement } from '../cluster/placement.ts'
import type { Store } from '../cluster/store.ts'
import type { RoutingDispatcher } from '../dispatch/dispatcher.ts'
import type { RouteTable } from '../dispatch/route.ts'
import type { Manifest } from '../pack/manifest.ts'
import { coverage } from './cluster-routes.ts'
import type { ClusterStatus, ClusterView, ExpertLoadStatus, NodeStateName, NodeStatus } from './cluster-view.ts'

/** What may be asked of the leader, by whoever leads or by the call that reaches it. */
export type LeaderCalls = Pick<ClusterView, 'drain' | 'undrain' | 'rebalance' | 'cancelElsewhere'>

export type StoreViewOptions = {
  cluster: string
  manifest: Manifest
  digest: string
  minReplicas: number
  store: Store
  membership: Membership
  dispatcher: RoutingDispatcher
  active: () => Placement | null
  leaderCalls: LeaderCalls
}

/** How often a watcher of events looks for new ones. */
const eventsEveryMs = 500
const eventsAtOnce = 256

/** The cluster as the store and this coordinator's own dispatches show it. */
export function storeView(options: StoreViewOptions): Omit<ClusterView, 'getProfile'> {
  const { store } = options
  return {
    getStatus: ({ expertLoad }) => clusterStatus(options, expertLoad),
    watchEvents: (last, listener) => {
      let cursor: string | null = null
      let isOpen = true
      const read = async () => {
        const max = cursor === null ? last : eventsAtOnce
        const page = await store.readEvents(cursor, Math.max(1, max))
        if (cursor !== null || last > 0) for (const event of page.events) if (isOpen) listener(event)
        cursor = page.cursor ?? cursor
      }
      const loop = async () => {
        while (isOpen) {
          // A store that is away has no news; it is asked again.
          await read().catch(() => {})
          await new Promise((resolve) => setTimeout(resolve, eventsEveryMs).unref())
        }
      }
      void loop()
      return () => {
        isOpen = false
      }
    },
    ...options.leaderCalls,
  }
}

/** Of all nodes that are known or were lost lately, without asking the store. */
export function nodeStates(options: Omit<StoreViewOptions, 'leaderCalls'>): Pick<NodeStatus, 'role' | 'state'>[] {
  const { nodes, lost } = options.membership.view()
  const roleOf = ({ record }: NodeEntry) => (record.role === 'coordinator' ? 'COORDINATOR' : 'EXPERT')
  return [
    ...[...nodes.values()].map((entry) => ({ role: roleOf(entry), state: nodeState(options, entry).state }) as const),
    ...[...lost.values()].map(({ entry }) => ({ role: roleOf(entry), state: 'LOST' }) as const),
  ]
}

async function clusterStatus(options: StoreViewOptions, expertLoad: boolean): Promise<ClusterStatus> {
  const { store, membership, dispatcher, manifest } = options
  const view = membership.view()
  const routes = dispatcher.routes()
  const gauges = await store.gauges().catch(() => new Map<string, NodeGauges>())
  const loads = await expertLoads(store, routes)
  const nodes = [
    ...[...view.nodes.values()].map((entry) => nodeStatus(options, entry, gauges.get(entry.record.id))),
    ...[...view.lost.values()].map(
      ({ entry, reason }): NodeStatus => ({ ...nodeStatus(options, entry, undefined), state: 'LOST', reason }),
    ),
  ]
  const sum = (pick: (gauge: NodeGauges) => number) => [...gauges.values()].reduce((total, it) => total + pick(it), 0)
  const { kind } = store
  const { reachable, roundTripMs } = store.health()
  return {
    cluster: options.cluster,
    modelDigest: options.digest,
    model: manifest.name,
    epoch: options.active()?.epoch ?? 0,
    leader: view.leader?.id ?? '',
    nodes: nodes.sort((a, b) => (a.role === b.role ? a.id.localeCompare(b.id) : a.role.localeCompare(b.role))),
    minReplicas: options.minReplicas,
    ...coverage(routes, options.minReplicas),
    balancedness: balancedness(loads, options.active(), nodes),
    store: { kind, reachable, roundTripMs },
    experts: expertLoad ? loads : [],
    runningRequests: sum(({ runningRequests }) => runningRequests),
    queuedRequests: sum(({ queuedRequests }) => queuedRequests),
    tokensPerSecond: sum(({ tokensPerSecond }) => tokensPerSecond),
  }
}

function nodeStatus(
  options: StoreViewOptions,
  { record, status }: NodeEntry,
  gauge: NodeGauges | undefined,
): NodeStatus {
  const { state, reason } = nodeState(options, { record, status })
  const stats = options.dispatcher.nodeStats(record.id)
  return {
    id: record.id,
    role: record.role === 'coordinator' ? 'COORDINATOR' : 'EXPERT',
    state,
    address: record.address,
    zone: record.zone,
    memoryBytes: record.memoryBytes,
    usedBytes: status.usedBytes,
    ranks: record.ranks,
    shards: countHeld(decodeHeld(status.held)),
    provider: record.provider,
    numerics: record.numerics,
    rowsPerSecond: gauge?.rowsPerSecond ?? 0,
    dispatchP50Ms: stats.p50Ms,
    dispatchP99Ms: stats.p99Ms,
    version: record.version,
    reason,
  }
}

function nodeState(
  { membership, dispatcher, manifest, digest, active }: Omit<StoreViewOptions, 'leaderCalls'>,
  { record, status }: NodeEntry,
): { state: NodeStateName; reason: string } {
  const view = membership.view()
  const { id, role } = record
  const suspended = view.suspended.get(id)
  if (suspended !== undefined) return { state: 'SUSPENDED', reason: suspended }
  const drainedBy = view.drained.get(id)
  if (drainedBy !== undefined) {
    const reason = drainedBy === 'operator' ? 'an operator drained it' : 'its pod is about to go: fewer are enough'
    const isEmpty = countHeld(decodeHeld(status.held)) === 0
    return { state: isEmpty ? 'DRAINED' : 'DRAINING', reason }
  }
  if (status.state === 'leaving') return { state: 'DRAINING', reason: status.reason || 'it is shutting down' }
  if (status.state === 'joining') return { state: 'JOINING', reason: status.reason }
  if (record.modelDigest !== '' && record.modelDigest !== digest) {
    return { state: 'JOINING', reason: `it serves another model, ${record.modelDigest.slice(0, 12)}` }
  }
  const numerics = active()?.numerics
  if (role === 'expert' && numerics !== undefined && record.numerics !== numerics) {
    return { state: 'JOINING', reason: `its numerics class is ${record.numerics}, the model runs on ${numerics}` }
  }
  const shardBytes = Math.min(...manifest.shards.map(({ bytes }) => bytes))
  if (role === 'expert' && record.memoryBytes < shardBytes && Number.isFinite(shardBytes)) {
    return {
      state: 'READY',
      reason: `its memory, ${record.memoryBytes} bytes, has no room for an expert: ${shardBytes}`,
    }
  }
  const stats = dispatcher.nodeStats(id)
  return stats.isLate ? { state: 'LATE', reason: stats.reason } : { state: 'READY', reason: '' }
}

async function expertLoads(store: Store, routes: RouteTable): Promise<ExpertLoadStatus[]> {
  const published = await store.loads().catch(() => new Map())
  const rates = new Map<string, number>()
  for (const { layers } of published.values()) {
    for (const { layer, rowsPerSecond } of layers) {
      rowsPerSecond.forEach((rate: number, expert: number) => {
        const key = `${layer}/${expert}`
        rates.set(key, (rates.get(key) ?? 0) + rate)
      })
    }
  }
  return [...routes.layers].flatMap(([layer, { experts, starts, nodes }]) =>
    Array.from({ length: experts }, (_, expert) => ({
      layer,
      expert,
      rowsPerSecond: rates.get(`${layer}/${expert}`) ?? 0,
      nodes: Array.from(
        nodes.subarray(starts[expert] ?? 0, starts[expert + 1] ?? 0),
        (node) => routes.nodeIds[node] ?? '',
      ),
    })),
  )
}

/** Mean load of the nodes divided by that of the busiest, as planned by the placement's shares; 1 where nothing is loaded. */
function balancedness(
  loads: readonly ExpertLoadStatus[],
  active: Placement | null,
  nodes: readonly NodeStatus[],
): number {
  if (active === null) return 1
  const rates = new Map(loads.map(({ layer, expert, rowsPerSecond }) => [`${layer}/${expert}`, rowsPerSecond]))
  const perNode = new Map(
    nodes.filter(({ role, state }) => role === 'EXPERT' && state === 'READY').map(({ id }) => [id, 0]),
  )
  for (const { layer, experts } of active.layers) {
    for (const [expert, flat] of experts.entries()) {
      let total = 0
      for (let i = 1; i < flat.length; i += 2) total += flat[i] ?? 0
      for (let i = 0; i + 1 < flat.length; i += 2) {
        const id = active.nodes[flat[i] ?? -1] ?? ''
        const share = total > 0 ? (flat[i + 1] ?? 0) / total : 0
        if (perNode.has(id)) perNode.set(id, (perNode.get(id) ?? 0) + share * (rates.get(`${layer}/${expert}`) ?? 0))
      }
    }
  }
  const busiest = Math.max(0, ...perNode.values())
  const mean = [...perNode.values()].reduce((sum, rate) => sum + rate, 0) / Math.max(1, perNode.size)
  return busiest === 0 ? 1 : mean / busiest
}
