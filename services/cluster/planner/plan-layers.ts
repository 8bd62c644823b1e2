import { compareShortage, copiesWanted, type Demand, demandOf, shortageOf } from './demand.ts'
import { fill } from './fill.ts'
import { improve } from './improve.ts'
import { complete, keep, surplusLimit } from './keep.ts'
import type { LayerPlan, LayerProblem } from './layer-plan.ts'
import { spread } from './spread.ts'

export type LayerPresent = {
  problem: LayerProblem
  /** By expert: node indexes that hold it now. */
  homes: number[][]
}

/** Closer to perfect than this nothing is searched for. */
const goodBalance = 0.998
const stepsFromNothingMax = 64
/** Nothing moves for the load's sake while a plan from nothing would be no better than by this. */
const gapMax = 0.02
/** When something moves, then until this close. */
const gapGoal = 0.01
/** A node that joined is brought in even if the others would hardly notice. */
const gapGoalJoined = 0.002
/** With less than this share of the balancedness of a plan from nothing, a node's joining is worth loading all anew. */
const anewShare = 0.6

/**
 * Plans each layer. Present homes stay; what is missing is added whatever it costs; for the load's sake at most
 * `movesMax` (a share) of the copies are loaded, and as many more as the nodes in `joined` may take.
 */
export function planLayers(
  layers: readonly LayerPresent[],
  joined: readonly number[],
  movesMax: number,
  nameOf: (node: number) => string,
): LayerPlan[] {
  const plans: LayerPlan[] = []
  const behind: { index: number; gap: number; anew: LayerPlan }[] = []
  for (const [index, { problem, homes }] of layers.entries()) {
    const demand = demandOf(problem)
    const anew = planFromNothing(problem, demand)
    plans.push(anew)
    if (homes.every((nodes) => nodes.length === 0)) continue
    const kept = keep(problem, homes, demand)
    if (compareShortage(shortageOf(anew, demand), shortageOf(kept, demand)) < 0) {
      explainAnew(anew, 'only a plan from nothing has room for all copies')
      continue
    }
    plans[index] = kept
    const gap = anew.balancedness() - kept.balancedness()
    if (gap > (joined.length > 0 ? gapGoalJoined : gapMax)) behind.push({ index, gap, anew })
  }
  behind.sort((a, b) => b.gap - a.gap || a.index - b.index)
  let movesLeft = Math.floor(movesMax * plans.reduce((sum, { copies }) => sum + copies, 0) + 1e-9)
  for (const [done, { index, anew }] of behind.entries()) {
    const plan = plans[index]
    if (plan === undefined) continue
    const share = Math.min(movesLeft, Math.ceil(movesLeft / (behind.length - done)))
    const forJoined = joinedShare(plan, joined)
    const goal = anew.balancedness() - (joined.length > 0 ? gapGoalJoined : gapGoal)
    const copiesMax = surplusLimit(plan.problem)
    const loaded = improve(
      plan,
      { goal, loadsMax: share + forJoined, copiesMax },
      (node) => `${nameOf(node)} was the busiest of its layer`,
    )
    movesLeft -= Math.max(0, loaded - forJoined)
    const gap = anew.balancedness() - plan.balancedness()
    const needed = loadedBy(anew, layers[index]?.homes ?? [])
    if (
      (gap > gapMax && needed <= share) ||
      (joined.length > 0 && plan.balancedness() < anewShare * anew.balancedness())
    ) {
      explainAnew(anew, 'the layer is balanced better from nothing')
      plans[index] = anew
      movesLeft -= Math.max(0, Math.min(share, needed) - loaded)
    }
  }
  return plans
}

function planFromNothing(problem: LayerProblem, demand: Demand): LayerPlan {
  const candidates: LayerPlan[] = []
  if (problem.minReplicas === 1) {
    const filled = fill(problem)
    if (filled !== null && filled.balancedness() >= goodBalance) return filled
    if (filled !== null) candidates.push(filled)
  }
  const spreadOut = spread(problem, demand)
  // Going by load may have left slots free that serve a rule after all.
  complete(spreadOut, demand, () => '')
  candidates.push(spreadOut)
  const limits = {
    goal: goodBalance * bestBalance(problem, demand),
    loadsMax: stepsFromNothingMax,
    copiesMax: problem.copiesMax,
  }
  for (const plan of candidates) {
    // What moved left a free slot, which may serve a rule.
    if (improve(plan, limits, () => '') > 0) complete(plan, demand, () => '')
  }
  candidates.sort(
    (a, b) =>
      compareShortage(shortageOf(a, demand), shortageOf(b, demand)) ||
      b.balancedness() - a.balancedness() ||
      a.copies - b.copies,
  )
  const [best] = candidates
  return best ?? spreadOut
}

/** No split is more balanced: some node has the share of the expert with the highest load per copy. */
function bestBalance(problem: LayerProblem, demand: Demand): number {
  const { loads, ranks, total, rankSum } = problem
  const ranksMax = ranks.reduce((most, count) => Math.max(most, count), 1)
  const highest = copiesWanted(problem, demand.replicas).reduce(
    (level, copies, expert) => Math.max(level, (loads[expert] ?? 0) / Math.max(1, copies) / ranksMax),
    0,
  )
  return Math.min(1, total / rankSum / highest)
}

/** Copies that nodes which joined may take of a layer: twice their even share, as the first ones may be cold. */
function joinedShare({ copies, problem }: LayerPlan, joined: readonly number[]): number {
  const ranks = joined.reduce((sum, node) => sum + (problem.ranks[node] ?? 1), 0)
  return Math.ceil((2 * copies * ranks) / problem.rankSum)
}

function loadedBy(plan: LayerPlan, present: readonly (readonly number[])[]): number {
  let count = 0
  for (const [expert, homes] of plan.homes.entries()) {
    for (const node of homes) if (present[expert]?.includes(node) !== true) count++
  }
  return count
}

function explainAnew(plan: LayerPlan, why: string): void {
  for (const [expert, homes] of plan.homes.entries()) for (const node of homes) plan.explain(expert, node, why)
}
