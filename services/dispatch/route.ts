import { MoeshError } from '../config/errors.ts'

/**
 * One live copy of an expert. Of many rows it takes the share `weight / sum of the copies' weights`; few rows stay
 * together, and any copy whose weight is not 0 may get them.
 */
export type ExpertCopy = { layer: number; expert: number; nodeId: string; weight: number }

/** A layer's copies: those of expert e stand at starts[e] … starts[e + 1] - 1. */
export type LayerRoutes = {
  readonly experts: number
  /** [experts + 1] */
  readonly starts: Int32Array
  /** Indices into `nodeIds`. */
  readonly nodes: Int32Array
  readonly weights: Float64Array
  /** Some expert has several copies. */
  readonly hasReplicas: boolean
}

/** Where the experts live, as the coordinator knows it. Never changed, only replaced. */
export type RouteTable = {
  readonly epoch: number
  readonly nodeIds: readonly string[]
  /** Ranks of each node: what it computes at once. */
  readonly nodeRanks: Float64Array
  readonly layers: ReadonlyMap<number, LayerRoutes>
}

/**
 * `ranks`: of each node, one where it is not named. Errors: INVALID_ARGUMENT for a copy of an expert that the model does
 * not have, or a weight below zero.
 */
export function routeTable(
  epoch: number,
  layers: readonly { layer: number; experts: number }[],
  copies: readonly ExpertCopy[],
  ranks: ReadonlyMap<string, number> = new Map(),
): RouteTable {
  const nodeIds = [...new Set(copies.map(({ nodeId }) => nodeId))].sort()
  const nodeIndex = new Map(nodeIds.map((nodeId, index) => [nodeId, index]))
  const byLayer = new Map(
    layers.map(({ layer, experts }) => [layer, Array.from({ length: experts }, () => [] as ExpertCopy[])]),
  )
  for (const copy of copies) {
    const { layer, expert, nodeId, weight } = copy
    const ofExpert = byLayer.get(layer)?.[expert]
    if (!ofExpert) throw new MoeshError('INVALID_ARGUMENT', `there is no expert ${expert} in layer ${layer}`)
    if (!(Number.isFinite(weight) && weight >= 0)) {
      throw new MoeshError('INVALID_ARGUMENT', `weight ${weight} of expert ${expert} in layer ${layer} on ${nodeId}`)
    }
    if (!ofExpert.some((other) => other.nodeId === nodeId)) ofExpert.push(copy)
  }
  return {
    epoch,
    nodeIds,
    nodeRanks: Float64Array.from(nodeIds, (id) => Math.max(1, ranks.get(id) ?? 1)),
    layers: new Map([...byLayer].map(([layer, experts]) => [layer, layerRoutes(experts, nodeIndex)])),
  }
}

function layerRoutes(experts: readonly ExpertCopy[][], nodeIndex: ReadonlyMap<string, number>): LayerRoutes {
  const starts = new Int32Array(experts.length + 1)
  experts.forEach((copies, expert) => {
    starts[expert + 1] = (starts[expert] ?? 0) + copies.length
  })
  const flat = experts.flatMap((copies) => copies.toSorted((a, b) => (a.nodeId < b.nodeId ? -1 : 1)))
  return {
    experts: experts.length,
    starts,
    nodes: Int32Array.from(flat, ({ nodeId }) => nodeIndex.get(nodeId) ?? -1),
    weights: Float64Array.from(flat, ({ weight }) => weight),
    hasReplicas: experts.some((copies) => copies.length > 1),
  }
}

/** Node index of the group of rows whose experts have no copy. */
export const nobody = -1
