import { encodeHeld } from '../../services/cluster/held.ts'
import { emptyStatus, type NodeEntry } from '../../services/cluster/node.ts'
import { type Placement, shardsOf } from '../../services/cluster/placement.ts'
import { type Plan, planPlacement } from '../../services/cluster/planner/plan.ts'
import { targetLayers } from '../../services/cluster/target.ts'
import { protocolVersion, version } from '../../services/config/version.ts'
import { clusterRoutes } from '../../services/coordinator/cluster-routes.ts'
import { ExpertLinks } from '../../services/coordinator/expert-links.ts'
import { systemClock } from '../../services/dispatch/clock.ts'
import { createDispatcher, type RoutingDispatcher } from '../../services/dispatch/dispatcher.ts'
import { rowEncoding } from '../../services/dispatch/rows.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import { moeLayers } from '../../services/model/spec.ts'
import { shardLayout } from '../../services/model/tensors.ts'
import type { BenchShape } from '../shape.ts'
import type { ExpertCost } from './cost.ts'
import { specOf } from './model.ts'
import { NodeGroup } from './node-group.ts'
import type { NodeStats } from './node-process.ts'

export type SimulatedClusterOptions = {
  shape: BenchShape
  format: WeightFormat
  cost: ExpertCost
  nodes: number
  /** That the nodes are divided over. */
  processes: number
  minReplicas: number
  /** Rows of each expert of a layer, as the planner is told; null: it knows of none and takes all for even. */
  loads: ((layer: number) => Float64Array) | null
  /** Nodes are reached through proxies that can delay; null: directly. */
  delay: { jitterMs: number } | null
  seed: number
}

/** Of all processes together; `lateMs` of the worst. */
export type SimulatedStats = NodeStats

export type SimulatedCluster = {
  shape: BenchShape
  format: WeightFormat
  plan: Plan
  dispatcher: RoutingDispatcher
  setRoundTripMs(roundTripMs: number): Promise<void>
  stats(): Promise<SimulatedStats>
  close(): Promise<void>
}

/** Ample: what limits copies is then what the planner finds useful. */
const memoryBytes = 2 ** 40
const readyMs = 30_000
const modelDigest = '0'.repeat(64)
const numerics = 'sleeping'

/**
 * The product's planner, routes, links and dispatcher in this process, and nodes that sleep in others: the product's
 * gRPC servers, over loopback. No store: nobody joins or leaves.
 */
export async function openSimulatedCluster(options: SimulatedClusterOptions): Promise<SimulatedCluster> {
  const { shape, format, cost, delay, seed } = options
  const spec = specOf(shape)
  const layers = moeLayers(spec).map(({ layer, ffn }) => ({
    layer,
    experts: ffn.experts,
    shardBytes: shardLayout(spec, ffn, format).bytes,
  }))
  const { plan, placement } = place(options, layers)
  await using opened = new AsyncDisposableStack()
  const groups = Array.from({ length: Math.min(options.processes, options.nodes) }, () =>
    opened.adopt(new NodeGroup(), (group) => group.close()),
  )
  const entries = new Map<string, NodeEntry>()
  await Promise.all(
    groups.map(async (group, index) => {
      const nodes = placement.nodes
        .filter((_, node) => node % groups.length === index)
        .map((id) => ({ id, held: encodeHeld(shardsOf(placement, id)) }))
      const common = { spec, format, cost, modelDigest, numerics }
      const seeded = delay && { ...delay, seed: seed + index * 1000 }
      const addresses = await group.open({ ...common, nodes, delay: seeded })
      for (const [at, { id, held }] of nodes.entries()) entries.set(id, entryOf(id, addresses[at] ?? '', held))
    }),
  )
  const view = { nodes: entries, suspended: new Map<string, string>() }
  const links = opened.adopt(await connect(view, { coordinatorId: 'coordinator', spec, format, modelDigest }), (it) =>
    it.close(),
  )
  const nobody = { nodeId: 'coordinator', held: new Map<number, Set<number>>() }
  const dispatcher = createDispatcher({
    hidden: spec.hidden,
    encoding: rowEncoding(format),
    routes: clusterRoutes(layers, view, placement, numerics, modelDigest, nobody),
    transports: links,
    clock: systemClock,
  })
  opened.defer(() => dispatcher.close())
  const running = opened.move()
  return {
    shape,
    format,
    plan,
    dispatcher,
    async setRoundTripMs(roundTripMs) {
      await Promise.all(groups.map((group) => group.setRoundTripMs(roundTripMs)))
    },
    async stats() {
      const all = await Promise.all(groups.map((group) => group.stats()))
      const worst = (of: (stats: NodeStats) => number) => Math.max(...all.map(of))
      return {
        cpuMs: all.reduce((sum, { cpuMs }) => sum + cpuMs, 0),
        lateMs: { p50: worst(({ lateMs }) => lateMs.p50), p99: worst(({ lateMs }) => lateMs.p99) },
        nodes: all.flatMap(({ nodes }) => nodes),
      }
    },
    close: () => running.disposeAsync(),
  }
}

type Layers = readonly { layer: number; experts: number; shardBytes: number }[]

function place(
  { nodes, minReplicas, loads }: SimulatedClusterOptions,
  layers: Layers,
): { plan: Plan; placement: Placement } {
  const ids = Array.from({ length: nodes }, (_, node) => `node-${String(node).padStart(3, '0')}`)
  const plan = planPlacement({
    layers: layers.map((layer) => ({ ...layer, loads: loads?.(layer.layer) ?? new Float64Array(layer.experts) })),
    nodes: ids.map((id) => ({ id, zone: '', memoryBytes, ranks: 1 })),
    present: [],
    minReplicas: Math.min(minReplicas, nodes),
  })
  const placement: Placement = {
    epoch: 1,
    token: 1,
    modelDigest,
    numerics,
    createdUnixMs: 0,
    why: 'a simulation',
    nodes: ids,
    layers: targetLayers(plan.copies, layers, ids),
  }
  return { plan, placement }
}

function entryOf(id: string, address: string, held: NodeEntry['status']['held']): NodeEntry {
  return {
    record: {
      id,
      incarnation: '1',
      role: 'expert',
      address,
      zone: '',
      memoryBytes,
      ranks: 1,
      provider: 'cpu',
      numerics,
      protocolVersion,
      version,
      modelDigest,
    },
    status: { ...emptyStatus, state: 'ready', held, epoch: 1 },
  }
}

type Common = Omit<ConstructorParameters<typeof ExpertLinks>[0], 'onState'>

/** Resolves when every node has greeted. */
async function connect(view: Parameters<ExpertLinks['update']>[0], common: Common): Promise<ExpertLinks> {
  const waiting = new Set(view.nodes.keys())
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const timer = setTimeout(() => reject(new Error(`no connection to ${[...waiting].join(', ')}`)), readyMs)
  const links = new ExpertLinks({
    ...common,
    onState: (nodeId, state) => {
      if (state.kind === 'ready') waiting.delete(nodeId)
      if (waiting.size === 0) resolve()
    },
  })
  links.update(view)
  try {
    await promise
    return links
  } catch (error) {
    await links.close()
    throw error
  } finally {
    clearTimeout(timer)
  }
}
