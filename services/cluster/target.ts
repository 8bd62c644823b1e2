import { decodeHeld } from './held.ts'
import { copiesOf, type Placement, shardsOf, weightUnit } from './placement.ts'
import type { PlannedCopy } from './planner/plan.ts'
import type { ClusterView } from './view.ts'

/**
 * From a plan to a placement, and back to what is still missing. The plan knows only the nodes that may get experts; what
 * it found no room for, and lives on a node that shall go, stays there: the last live copy of an expert is never dropped.
 */
export function lastCopies(
  copies: readonly PlannedCopy[],
  layers: readonly { layer: number; experts: number }[],
  view: ClusterView,
  numerics: string,
): PlannedCopy[] {
  const planned = new Set(copies.map(({ layer, expert }) => `${layer}/${expert}`))
  const kept = new Map<string, PlannedCopy>()
  const expertCounts = new Map(layers.map(({ layer, experts }) => [layer, experts]))
  for (const id of [...view.nodes.keys()].sort()) {
    const entry = view.nodes.get(id)
    if (entry?.record.role !== 'expert' || entry.record.numerics !== numerics || view.suspended.has(id)) continue
    for (const [layer, experts] of decodeHeld(entry.status.held)) {
      for (const expert of experts) {
        const key = `${layer}/${expert}`
        if (expert >= (expertCounts.get(layer) ?? 0) || planned.has(key) || kept.has(key)) continue
        kept.set(key, { layer, expert, node: id, weight: weightUnit })
      }
    }
  }
  return [...kept.values()]
}

export function targetLayers(
  copies: readonly PlannedCopy[],
  layers: readonly { layer: number; experts: number }[],
  nodes: readonly string[],
): Placement['layers'] {
  const index = new Map(nodes.map((id, at) => [id, at]))
  const result = layers.map(({ layer, experts }) => ({
    layer,
    experts: Array.from({ length: experts }, (): number[] => []),
  }))
  const byLayer = new Map(result.map((entry) => [entry.layer, entry]))
  for (const { layer, expert, node, weight } of copies) {
    const at = index.get(node)
    if (at !== undefined) byLayer.get(layer)?.experts[expert]?.push(at, weight)
  }
  return result
}

/**
 * What the nodes hold and a plan can count on. What a node of a settled placement holds beside it is left over from
 * before, and it is letting go of it.
 */
export function presentCopies(
  view: ClusterView,
  nodes: readonly { id: string }[],
  settled: Placement | null,
): { layer: number; expert: number; node: string }[] {
  return nodes.flatMap(({ id }) => {
    const wanted = settled?.nodes.includes(id) ? shardsOf(settled, id) : null
    return [...decodeHeld(view.nodes.get(id)?.status.held ?? {})].flatMap(([layer, experts]) =>
      [...experts]
        .filter((expert) => wanted === null || wanted.get(layer)?.has(expert))
        .map((expert) => ({ layer, expert, node: id })),
    )
  })
}

/** By node of the target, how many of its copies it does not report yet. */
export function missingCopies(target: Placement, view: ClusterView): Map<string, number> {
  const held = new Map([...view.nodes].map(([id, { status }]) => [id, decodeHeld(status.held)]))
  const missing = new Map<string, number>()
  for (const { layer, expert, node } of copiesOf(target)) {
    if (!held.get(node)?.get(layer)?.has(expert)) missing.set(node, (missing.get(node) ?? 0) + 1)
  }
  return missing
}
