import { strict as assert } from 'node:assert'
import { eplbLayer } from './eplb-plan.ts'
import { LayerPlan, type LayerProblem } from './layer-plan.ts'
import { movesOf, type PlannedMove } from './moves.ts'
import { type LayerPresent, planLayers } from './plan-layers.ts'
import { slotsOf, usefulCopies } from './slots.ts'
import { integerWeights } from './split.ts'
import { type Unmet, unmetOf } from './unmet.ts'

/** A node that may hold experts. One that is drained or lost is not among them. */
export type PlannerNode = { id: string; zone: string; memoryBytes: number; ranks: number }

/** `loads`: [experts] rows/s; missing and impossible values count as 0, all 0 as all the same. */
export type PlannerLayer = { layer: number; experts: number; shardBytes: number; loads: Float64Array }

export type PlanInput = {
  layers: readonly PlannerLayer[]
  nodes: readonly PlannerNode[]
  /** What nodes hold now. Of nodes, layers or experts that are not in the input it counts for nothing. */
  present: readonly { layer: number; expert: number; node: string }[]
  /** At least 1. */
  minReplicas: number
  /** Share of the copies that may be loaded for the load's sake only. Missing copies and joining nodes come on top. */
  movesMax?: number
  /** `eplb`: DeepSeek's, which knows only loads and slots; where it has no answer, and by default, our own. */
  policy?: 'balanced' | 'eplb'
}

/** `weight`: integer share of `weightUnit`; those of an expert's copies sum up to it. */
export type PlannedCopy = { layer: number; expert: number; node: string; weight: number }

export type Plan = {
  /** By layer, expert, node as in the input. */
  copies: PlannedCopy[]
  moves: PlannedMove[]
  unmet: Unmet[]
  balancedness: number
}

const movesMaxDefault = 0.05

/**
 * Where experts shall live. In this order: every expert has a copy; `minReplicas` copies on different nodes, in different
 * zones if there are several; hot experts get more; the busiest node carries as little as possible per rank and layer;
 * few moves. A node's memory is never exceeded. What could not be kept is in `unmet`. The same input gives the same plan.
 */
export function planPlacement(input: PlanInput): Plan {
  const { nodes, movesMax = movesMaxDefault } = input
  assert.equal(new Set(nodes.map(({ id }) => id)).size, nodes.length, 'nodes have different ids')
  assert.equal(new Set(input.layers.map(({ layer }) => layer)).size, input.layers.length, 'layers are different')
  const minReplicas = Math.max(1, Math.floor(input.minReplicas))
  const layers = layerProblems(input, minReplicas)
  const nameOf = (node: number) => nodes[node]?.id ?? ''
  const holding = new Set(layers.flatMap(({ homes }) => homes.flat()))
  const joined = holding.size === 0 ? [] : [...nodes.keys()].filter((node) => !holding.has(node))
  const own = () =>
    nodes.length === 0
      ? layers.map(({ problem }) => new LayerPlan(problem))
      : planLayers(layers, joined, movesMax, nameOf)
  const plans = (input.policy === 'eplb' ? eplbLayers(layers) : null) ?? own()
  const copies = plans.flatMap((plan) => copiesOf(plan, nameOf))
  const unmetNodes = nodes.map(({ id, memoryBytes }, node) => ({
    id,
    memoryBytes,
    slots: layers.reduce((sum, { problem }) => sum + (problem.slots[node] ?? 0), 0),
  }))
  const smallestShardBytes = Math.min(...input.layers.map(({ shardBytes }) => shardBytes))
  return {
    copies,
    moves: layers.flatMap((layer, i) =>
      movesOf(layer, plans[i] ?? new LayerPlan(layer.problem), nameOf, holding.size === 0),
    ),
    unmet: input.layers.length === 0 ? [] : unmetOf(plans, unmetNodes, minReplicas, smallestShardBytes),
    balancedness: balancednessOf(copies, input.layers, nodes),
  }
}

/** Null unless it has an answer for all layers. */
function eplbLayers(layers: readonly LayerPresent[]): LayerPlan[] | null {
  const plans = layers.map(({ problem }) => eplbLayer(problem))
  return plans.every((plan) => plan !== null) ? plans : null
}

function layerProblems({ layers, nodes, present }: PlanInput, minReplicas: number): LayerPresent[] {
  const ranks = Float64Array.from(nodes, (node) => Math.max(1, Math.floor(node.ranks) || 1))
  const rankSum = ranks.reduce((sum, count) => sum + count, 0)
  const zoneNames = [...new Set(nodes.map(({ zone }) => zone))].sort()
  const zones = Int32Array.from(nodes, ({ zone }) => zoneNames.indexOf(zone))
  const nodeIndex = new Map(nodes.map(({ id }, index) => [id, index]))
  const layerIndex = new Map(layers.map(({ layer }, index) => [layer, index]))
  const homes = layers.map(({ experts }) => Array.from({ length: experts }, (): number[] => []))
  for (const { layer, expert, node } of present) {
    const index = nodeIndex.get(node)
    const nodesOfExpert = homes[layerIndex.get(layer) ?? -1]?.[expert]
    if (index !== undefined && nodesOfExpert?.includes(index) === false) nodesOfExpert.push(index)
  }
  // The order in which nodes report is no reason for another plan.
  for (const layer of homes) for (const nodesOfExpert of layer) nodesOfExpert.sort((a, b) => a - b)
  const slots = slotsOf(
    layers.map(({ experts, shardBytes }, i) => {
      const presentCopies = new Int32Array(nodes.length)
      for (const node of homes[i]?.flat() ?? []) presentCopies[node] = (presentCopies[node] ?? 0) + 1
      return { experts, shardBytes, presentCopies }
    }),
    nodes.map(({ memoryBytes }, node) => ({ memoryBytes, ranks: ranks[node] ?? 1, zone: zones[node] ?? 0 })),
    minReplicas,
  )
  return layers.map(({ layer, experts, loads: measured }, i) => {
    const loads = Float64Array.from({ length: experts }, (_, expert) => usableLoad(measured[expert]))
    let total = loads.reduce((sum, load) => sum + load, 0)
    if (total === 0) {
      loads.fill(1)
      total = experts
    }
    const problem: LayerProblem = {
      layer,
      experts,
      loads,
      total,
      ranks,
      rankSum,
      slots: slots[i] ?? new Int32Array(nodes.length),
      zones,
      zoneCount: zoneNames.length,
      minReplicas,
      copiesMax: usefulCopies(experts, nodes.length, minReplicas),
    }
    return { problem, homes: homes[i] ?? [] }
  })
}

function usableLoad(load: number | undefined): number {
  return load !== undefined && load > 0 && Number.isFinite(load) ? load : 0
}

function copiesOf(plan: LayerPlan, nameOf: (node: number) => string): PlannedCopy[] {
  const { layer } = plan.problem
  return plan.homes.flatMap((homes, expert) => {
    const shares = homes.map((node, i) => ({ node, rows: plan.rows[expert]?.[i] ?? 0 })).sort((a, b) => a.node - b.node)
    const weights = integerWeights(shares.map(({ rows }) => rows))
    return shares.map(({ node }, i) => ({ layer, expert, node: nameOf(node), weight: weights[i] ?? 0 }))
  })
}

/**
 * How even the load is: mean over the nodes / busiest node, per rank and by the weighted split, mean over the layers. 1
 * is perfect, also where nothing is loaded.
 */
export function balancednessOf(
  copies: readonly PlannedCopy[],
  layers: readonly PlannerLayer[],
  nodes: readonly PlannerNode[],
): number {
  if (layers.length === 0) return 1
  const index = new Map(nodes.map(({ id }, i) => [id, i]))
  const rankSum = nodes.reduce((sum, { ranks }) => sum + Math.max(1, ranks), 0)
  const byLayer = new Map(
    layers.map(({ layer, experts, loads }) => [
      layer,
      { loads, weightSums: new Float64Array(experts), levels: new Float64Array(nodes.length), total: 0 },
    ]),
  )
  for (const { layer, expert, weight } of copies) {
    const sums = byLayer.get(layer)?.weightSums
    if (sums !== undefined) sums[expert] = (sums[expert] ?? 0) + weight
  }
  for (const { layer, expert, node, weight } of copies) {
    const entry = byLayer.get(layer)
    const i = index.get(node)
    if (entry === undefined || i === undefined || weight === 0) continue
    const rows = (usableLoad(entry.loads[expert]) * weight) / (entry.weightSums[expert] ?? 1)
    entry.levels[i] = (entry.levels[i] ?? 0) + rows / Math.max(1, nodes[i]?.ranks ?? 1)
    entry.total += rows
  }
  let sum = 0
  for (const { levels, total } of byLayer.values()) {
    const busiest = levels.reduce((highest, level) => Math.max(highest, level), 0)
    sum += busiest === 0 ? 1 : total / rankSum / busiest
  }
  return sum / layers.length
}
