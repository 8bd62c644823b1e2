import { decodeHeld } from '../cluster/held.ts'
import { copiesOf, type Placement } from '../cluster/placement.ts'
import type { ClusterView } from '../cluster/view.ts'
import { type ExpertCopy, type RouteTable, routeTable } from '../dispatch/route.ts'

/**
 * Where rows go, from what nodes say that they hold: routing believes that and nothing else. The active placement gives
 * the shares, from which a step's levelling starts; a copy that it does not name (one that was just loaded, or will be
 * unloaded soon) takes rows only where no named copy lives. A model is served by nodes of one numerics class.
 */
export function clusterRoutes(
  layers: readonly { layer: number; experts: number }[],
  view: Pick<ClusterView, 'nodes' | 'suspended'>,
  active: Placement | null,
  numerics: string,
  modelDigest: string,
  /** What the coordinator itself holds as a last resort. */
  fallback: { nodeId: string; held: ReadonlyMap<number, ReadonlySet<number>> },
): RouteTable {
  const shares = new Map<string, number>()
  for (const { layer, expert, node, weight } of active ? copiesOf(active) : []) {
    // A copy that is there for safety alone has no share, but may relieve others within a step.
    shares.set(`${layer}/${expert}/${node}`, Math.max(1, weight))
  }
  const copies: ExpertCopy[] = []
  const ranks = new Map<string, number>()
  for (const [nodeId, { record, status }] of view.nodes) {
    if (record.role !== 'expert' || record.numerics !== numerics || view.suspended.has(nodeId)) continue
    if (record.modelDigest !== '' && record.modelDigest !== modelDigest) continue
    ranks.set(nodeId, record.ranks)
    for (const [layer, experts] of decodeHeld(status.held)) {
      const known = layers.find((entry) => entry.layer === layer)
      for (const expert of experts) {
        if (!known || expert >= known.experts) continue
        copies.push({ layer, expert, nodeId, weight: shares.get(`${layer}/${expert}/${nodeId}`) ?? 0 })
      }
    }
  }
  for (const [layer, experts] of fallback.held) {
    for (const expert of experts) copies.push({ layer, expert, nodeId: fallback.nodeId, weight: 0 })
  }
  return routeTable(active?.epoch ?? 0, layers, withShares(copies), ranks)
}

/** An expert whose live copies all have no share gets equal ones. */
function withShares(copies: readonly ExpertCopy[]): ExpertCopy[] {
  const total = new Map<string, number>()
  const key = ({ layer, expert }: ExpertCopy) => `${layer}/${expert}`
  for (const copy of copies) total.set(key(copy), (total.get(key(copy)) ?? 0) + copy.weight)
  return copies.map((copy) => ((total.get(key(copy)) ?? 0) > 0 ? copy : { ...copy, weight: 1 }))
}

/** (layer, expert) pairs without a copy, and with fewer than `minReplicas`. */
export function coverage(routes: RouteTable, minReplicas: number): { uncovered: number; underReplicated: number } {
  let uncovered = 0
  let underReplicated = 0
  for (const { experts, starts } of routes.layers.values()) {
    for (let expert = 0; expert < experts; expert++) {
      const copies = (starts[expert + 1] ?? 0) - (starts[expert] ?? 0)
      if (copies === 0) uncovered++
      if (copies < minReplicas) underReplicated++
    }
  }
  return { uncovered, underReplicated }
}

/** Live copies that experts lack of `minReplicas`, in all. */
export function copiesMissing(routes: RouteTable, minReplicas: number): number {
  let missing = 0
  for (const { experts, starts } of routes.layers.values()) {
    for (let expert = 0; expert < experts; expert++) {
      missing += Math.max(0, minReplicas - ((starts[expert + 1] ?? 0) - (starts[expert] ?? 0)))
    }
  }
  return missing
}
