import { z } from 'zod'
import { expertsMax } from './held.ts'

/**
 * Where every expert shall live, as an epoch in the store says it. Readers get the copies of each expert with the share
 * of its rows that each shall take.
 */
export const placementSchema = z.object({
  /** Counts up; shown to people. The identity of a placement is (epoch, token). */
  epoch: z.number().int().positive(),
  /** Fencing token of the leader that wrote it; unique even where an emptied store lets epochs repeat. */
  token: z.number().int().nonnegative(),
  /** Digest of the pack that the shards belong to. */
  modelDigest: z.string(),
  /** Class of the nodes in it. */
  numerics: z.string(),
  createdUnixMs: z.number().int().nonnegative(),
  why: z.string().max(1024),
  /** Indexed by `layers`. */
  nodes: z.array(z.string()).max(65_536),
  layers: z
    .array(
      z.object({
        layer: z.number().int().nonnegative(),
        /** By expert: node index, weight, node index, weight, …; weights are integers, shares of their sum. */
        experts: z.array(z.array(z.number().int().nonnegative())).max(expertsMax),
      }),
    )
    .max(4096),
})
export type Placement = z.infer<typeof placementSchema>

export type PlacementId = { epoch: number; token: number }

/** Sum of the weights of one expert's copies, but for rounding. */
export const weightUnit = 65_536

export type Copy = { layer: number; expert: number; node: string; weight: number }

/** All copies, by layer, expert, then as written. */
export function* copiesOf(placement: Placement): Generator<Copy> {
  for (const { layer, experts } of placement.layers) {
    for (const [expert, flat] of experts.entries()) {
      for (let i = 0; i + 1 < flat.length; i += 2) {
        const node = placement.nodes[flat[i] ?? -1]
        if (node !== undefined) yield { layer, expert, node, weight: flat[i + 1] ?? 0 }
      }
    }
  }
}

/** By layer, the experts that the placement wants `node` to hold. */
export function shardsOf(placement: Placement, node: string): Map<number, Set<number>> {
  const shards = new Map<number, Set<number>>()
  const index = placement.nodes.indexOf(node)
  if (index < 0) return shards
  for (const { layer, experts } of placement.layers) {
    const own = new Set<number>()
    for (const [expert, flat] of experts.entries()) {
      for (let i = 0; i < flat.length; i += 2) if (flat[i] === index) own.add(expert)
    }
    if (own.size > 0) shards.set(layer, own)
  }
  return shards
}

export function sameId(a: PlacementId | null, b: PlacementId | null): boolean {
  return a === null || b === null ? a === b : a.epoch === b.epoch && a.token === b.token
}
