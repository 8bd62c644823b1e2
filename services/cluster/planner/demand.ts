import type { LayerPlan, LayerProblem } from './layer-plan.ts'

/** What the slots of a layer allow of the wanted copies, if they are used well. */
export type Demand = {
  /** Every expert can have this many copies on different nodes: `minReplicas`, or fewer where slots are short. */
  replicas: number
  /** Every expert can have copies in this many different zones. */
  zones: number
}

export function demandOf({ experts, slots, zones, zoneCount, minReplicas }: LayerProblem): Demand {
  let usable = 0
  const zoneSlots = new Float64Array(zoneCount)
  for (const [node, count] of slots.entries()) {
    usable += Math.min(count, experts)
    zoneSlots[zones[node] ?? 0] = (zoneSlots[zones[node] ?? 0] ?? 0) + count
  }
  // n items, each in m of the bins, bin b holding up to c_b different ones: possible just when Σ min(c_b, n) ≥ m·n.
  const replicas = Math.min(minReplicas, Math.floor(usable / experts))
  const usableInZones = zoneSlots.reduce((sum, count) => sum + Math.min(count, experts), 0)
  return { replicas, zones: Math.min(replicas, Math.floor(usableInZones / experts)) }
}

/** How many different zones an expert's copies shall be in. */
export function zonesWanted({ minReplicas, zoneCount }: LayerProblem): number {
  return Math.min(minReplicas, zoneCount)
}

export type Shortage = {
  /** Experts without a home. */
  uncovered: number
  /** Copies short of what all experts could have. */
  missingPossible: number
  /** Copies short of `minReplicas`. */
  missingCopies: number
  /** Experts in too few zones. */
  missingZones: number
}

export function shortageOf(plan: LayerPlan, demand: Demand): Shortage {
  const { minReplicas } = plan.problem
  const zones = zonesWanted(plan.problem)
  const shortage = { uncovered: 0, missingPossible: 0, missingCopies: 0, missingZones: 0 }
  for (const [expert, homes] of plan.homes.entries()) {
    if (homes.length === 0) shortage.uncovered++
    shortage.missingPossible += Math.max(0, demand.replicas - homes.length)
    shortage.missingCopies += Math.max(0, minReplicas - homes.length)
    if (plan.zonesOf(expert) < zones) shortage.missingZones++
  }
  return shortage
}

/** Negative if `a` breaks less than `b`: coverage counts before replicas, these before zones. */
export function compareShortage(a: Shortage, b: Shortage): number {
  return (
    a.uncovered - b.uncovered ||
    a.missingPossible - b.missingPossible ||
    a.missingCopies - b.missingCopies ||
    a.missingZones - b.missingZones
  )
}

/** [experts] copies each: the wanted minimum, and what else there is to those with the highest load per copy. */
export function copiesWanted(problem: LayerProblem, replicas: number): Int32Array {
  const { experts, loads, slots, minReplicas, copiesMax } = problem
  let nodes = 0
  let usable = 0
  for (const count of slots) {
    if (count > 0) nodes++
    usable += Math.min(count, experts)
  }
  const wanted = new Int32Array(experts).fill(replicas)
  let extra = Math.min(copiesMax, usable) - experts * replicas
  const give = (copiesUpTo: number) => {
    let best = -1
    let highest = -1
    for (let expert = 0; expert < experts; expert++) {
      const count = wanted[expert] ?? 0
      const perCopy = (loads[expert] ?? 0) / Math.max(count, 0.5)
      if (count < copiesUpTo && perCopy > highest) {
        best = expert
        highest = perCopy
      }
    }
    if (best >= 0) wanted[best] = (wanted[best] ?? 0) + 1
    return best >= 0
  }
  // First whatever is possible of the minimum, the hot ones first, level by level.
  for (let level = replicas + 1; level <= Math.min(minReplicas, nodes); level++) {
    while (extra > 0 && give(level)) extra--
  }
  while (extra > 0 && give(nodes)) extra--
  return wanted
}
