import type { LayerPlan } from './layer-plan.ts'
import type { LayerPresent } from './plan-layers.ts'

/** `from` '' = a new copy, `to` '' = a copy that is not needed any more. */
export type PlannedMove = { layer: number; expert: number; from: string; to: string; why: string }

/** The difference between what is and what shall be, by layer and expert; a new copy and a dropped one are one move. */
export function movesOf(
  { homes: present }: LayerPresent,
  plan: LayerPlan,
  nameOf: (node: number) => string,
  isFirst: boolean,
): PlannedMove[] {
  const { layer } = plan.problem
  const moves: PlannedMove[] = []
  for (const [expert, homes] of plan.homes.entries()) {
    const before = present[expert] ?? []
    const added = homes.filter((node) => !before.includes(node)).sort((a, b) => a - b)
    const dropped = before.filter((node) => !homes.includes(node)).sort((a, b) => a - b)
    for (const [i, node] of added.entries()) {
      const from = dropped[i]
      const why = plan.reason(expert, node) || (isFirst ? 'there was no copy yet' : 'nothing held the layer')
      moves.push({ layer, expert, from: from === undefined ? '' : nameOf(from), to: nameOf(node), why })
    }
    for (const node of dropped.slice(added.length)) {
      const why = `not needed: ${homes.length} other ${homes.length === 1 ? 'copy serves' : 'copies serve'} it`
      moves.push({ layer, expert, from: nameOf(node), to: '', why: homes.length === 0 ? 'no memory for it' : why })
    }
  }
  return moves
}
