import { copiesWanted, type Demand, zonesWanted } from './demand.ts'
import { LayerPlan, type LayerProblem } from './layer-plan.ts'

/**
 * The present homes, without what is too much, with what is missing of coverage, replicas and zones. Everything else
 * stays where it is; only the split is new.
 *
 * `present`: by expert, node indexes.
 */
export function keep(problem: LayerProblem, present: readonly (readonly number[])[], demand: Demand): LayerPlan {
  const plan = new LayerPlan(problem)
  for (const [expert, homes] of present.entries()) for (const node of homes) plan.add(expert, node, '')
  plan.settle()
  dropSurplus(plan, demand)
  complete(plan, demand, (expert) => {
    const before = present[expert]?.length ?? 0
    return before === 0 ? 'nothing held it' : `it had ${before} of ${problem.minReplicas} copies`
  })
  return plan
}

/** Adds what is missing of coverage, replicas and zones, as far as there are slots. Splits the rows anew. */
export function complete(plan: LayerPlan, demand: Demand, why: (expert: number) => string): void {
  addMissing(plan, demand, why)
  spreadOverZones(plan, demand)
  plan.settle()
}

/** Copies above it are dropped. Above what a plan from nothing would have: what helped once may help again. */
export function surplusLimit({ copiesMax, ranks }: LayerProblem): number {
  return copiesMax + ranks.length
}

/** Copies beyond memory, and copies beyond what is useful. */
function dropSurplus(plan: LayerPlan, demand: Demand): void {
  const { problem } = plan
  const wanted = copiesWanted(problem, demand.replicas)
  for (const node of plan.nodeLoads.keys()) {
    while (plan.freeSlots(node) < 0) {
      const expert = mostDispensable(plan, plan.held[node] ?? [], node, wanted)
      plan.remove(expert, node)
      plan.pour(expert)
    }
  }
  const limit = surplusLimit(problem)
  for (let expert = 0; expert < problem.experts && plan.copies > limit; expert++) {
    while (plan.copies > limit && (plan.homes[expert]?.length ?? 0) > (wanted[expert] ?? 0)) {
      const zones = plan.zonesOf(expert)
      const node = fullestFirst(plan, plan.homes[expert] ?? []).find(
        (home) => zones > zonesWanted(problem) || !isAloneInZone(plan, expert, home),
      )
      if (node === undefined) break
      plan.remove(expert, node)
      plan.pour(expert)
    }
  }
}

function mostDispensable(plan: LayerPlan, experts: readonly number[], node: number, wanted: Int32Array): number {
  const surplus = (expert: number) => (plan.homes[expert]?.length ?? 0) - (wanted[expert] ?? 0)
  const rank = (expert: number) => [
    -Math.max(surplus(expert), -1),
    isAloneInZone(plan, expert, node) ? 1 : 0,
    plan.problem.loads[expert] ?? 0,
    expert,
  ]
  return [...experts].sort((a, b) => compareLists(rank(a), rank(b)))[0] ?? 0
}

/** Copies up to the wanted minimum, level by level; first what all can have, then what the hot ones can. */
function addMissing(plan: LayerPlan, demand: Demand, why: (expert: number) => string): void {
  const { loads, minReplicas } = plan.problem
  const hotFirst = Array.from(loads.keys()).sort((a, b) => (loads[b] ?? 0) - (loads[a] ?? 0) || a - b)
  for (let level = 1; level <= minReplicas; level++) {
    for (const expert of hotFirst) {
      if ((plan.homes[expert]?.length ?? 0) >= level) continue
      const node = nodeForCopy(plan, expert, level, demand)
      if (node < 0) continue
      plan.add(expert, node, why(expert))
      plan.pour(expert)
    }
    // More than that the slots do not allow for all; the hot ones got it.
    if (level > demand.replicas) break
  }
}

/** With a free slot, the lowest first; without one, room is made by dropping what has more than `level` copies. */
function nodeForCopy(plan: LayerPlan, expert: number, level: number, demand: Demand): number {
  const taken = new Set((plan.homes[expert] ?? []).map((node) => plan.problem.zones[node]))
  const loadOf = (other: number) => plan.problem.loads[other] ?? 0
  const needsZone = taken.size < zonesWanted(plan.problem)
  const candidates = Array.from(plan.nodeLoads.keys()).filter((node) => !plan.holds(expert, node))
  const isOther = (node: number) => needsZone && !taken.has(plan.problem.zones[node])
  candidates.sort((a, b) => Number(isOther(b)) - Number(isOther(a)) || plan.level(a) - plan.level(b) || a - b)
  const free = candidates.find((node) => plan.freeSlots(node) > 0)
  if (free !== undefined && (!needsZone || isOther(free))) return free
  for (const node of candidates) {
    if (free !== undefined && !isOther(node)) break
    const dispensable = (plan.held[node] ?? [])
      .filter((other) => {
        const count = plan.homes[other]?.length ?? 0
        if (count > level) {
          return level === 1 || plan.zonesOf(other) > zonesWanted(plan.problem) || !isAloneInZone(plan, other, node)
        }
        // Where not all can have as many, those with much load have them rather than those with little.
        return count === level && level > demand.replicas && loadOf(other) < loadOf(expert) / 2
      })
      .sort((a, b) => (plan.homes[b]?.length ?? 0) - (plan.homes[a]?.length ?? 0) || loadOf(a) - loadOf(b) || a - b)[0]
    if (dispensable === undefined) continue
    plan.remove(dispensable, node)
    plan.pour(dispensable)
    return node
  }
  return free ?? -1
}

/** Copies enough, but in too few zones: one of those that share a zone moves to another. */
function spreadOverZones(plan: LayerPlan, demand: Demand): void {
  const wanted = zonesWanted(plan.problem)
  if (demand.replicas < 2 || wanted < 2) return
  for (const [expert, homes] of plan.homes.entries()) {
    while (homes.length >= 2 && plan.zonesOf(expert) < Math.min(wanted, homes.length)) {
      const taken = new Set(homes.map((node) => plan.problem.zones[node]))
      const to = lowestFree(plan, (node) => !taken.has(plan.problem.zones[node]))
      if (to < 0) break
      const from = fullestFirst(plan, homes).find((node) => !isAloneInZone(plan, expert, node))
      plan.add(expert, to, 'its copies shared a zone')
      if (from !== undefined && homes.length > plan.problem.minReplicas) plan.remove(expert, from)
      plan.pour(expert)
    }
  }
}

function lowestFree(plan: LayerPlan, accepts: (node: number) => boolean): number {
  let best = -1
  for (const node of plan.nodeLoads.keys()) {
    if (plan.freeSlots(node) > 0 && accepts(node) && (best < 0 || plan.level(node) < plan.level(best))) best = node
  }
  return best
}

function fullestFirst(plan: LayerPlan, nodes: readonly number[]): number[] {
  const share = (node: number) => (plan.held[node]?.length ?? 0) / (plan.problem.ranks[node] ?? 1)
  return [...nodes].sort((a, b) => share(b) - share(a) || a - b)
}

/** No other copy of the expert is in the zone of `node`. */
export function isAloneInZone(plan: LayerPlan, expert: number, node: number): boolean {
  const { zones } = plan.problem
  return (plan.homes[expert] ?? []).every((home) => home === node || zones[home] !== zones[node])
}

function compareLists(a: readonly number[], b: readonly number[]): number {
  for (const [i, value] of a.entries()) if (value !== b[i]) return value - (b[i] ?? 0)
  return 0
}
