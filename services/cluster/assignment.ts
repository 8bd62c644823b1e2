import { type Placement, sameId, shardsOf } from './placement.ts'

export type Assignment = {
  load: { layer: number; expert: number }[]
  unload: { layer: number; expert: number }[]
}

/**
 * What an expert node has to do, from the placement that shall be and the one that is. It loads what the target asks
 * for; what neither of the two names it lets go, but only when the target is the active one: until then somebody may
 * still send rows by an older placement.
 */
export function assignment(
  node: string,
  target: Placement | null,
  active: Placement | null,
  held: ReadonlyMap<number, ReadonlySet<number>>,
): Assignment {
  if (target === null) return { load: [], unload: [] }
  const wanted = shardsOf(target, node)
  const load = [...wanted].flatMap(([layer, experts]) =>
    [...experts].filter((expert) => !held.get(layer)?.has(expert)).map((expert) => ({ layer, expert })),
  )
  if (active === null || !sameId(target, active)) return { load, unload: [] }
  const unload = [...held].flatMap(([layer, experts]) =>
    [...experts].filter((expert) => !wanted.get(layer)?.has(expert)).map((expert) => ({ layer, expert })),
  )
  return { load, unload }
}
