export type PlannerNode = { id: string; zone: string; memoryBytes: number; ranks: number }
export type PlannerLayer = { layer: number; experts: number; shardBytes: number; loads: Float64Array }
export type PlanInput = {
  layers: readonly PlannerLayer[]
  nodes: readonly PlannerNode[]
  present: readonly { layer: number; expert: number; node: string }[]
  minReplicas: number
  movesMax?: number
}
export type PlannedCopy = { layer: number; expert: number; node: string; weight: number }
export type PlannedMove = { layer: number; expert: number; from: string; to: string; why: string }
export type Unmet = { rule: 'coverage' | 'replicas' | 'zones' | 'memory'; text: string; count: number }
export type Plan = { copies: PlannedCopy[]; moves: PlannedMove[]; unmet: Unmet[]; balancedness: number }
export function planPlacement(input: PlanInput): Plan {
  const copies: PlannedCopy[] = []
  const n = input.nodes.length
  for (const { layer, experts } of input.layers)
    for (let e = 0; e < experts; e++)
      for (let r = 0; r < Math.min(n, input.minReplicas); r++)
        copies.push({ layer, expert: e, node: input.nodes[(e + r) % n]!.id, weight: 1 })
  const had = new Set(input.present.map((p) => `${p.layer}/${p.expert}/${p.node}`))
  return {
    copies,
    moves: copies
      .filter((c) => !had.has(`${c.layer}/${c.expert}/${c.node}`))
      .map((c) => ({ layer: c.layer, expert: c.expert, from: '', to: c.node, why: 'x' })),
    unmet: [],
    balancedness: 1,
  }
}
