import { zonesWanted } from './demand.ts'
import { isAloneInZone } from './keep.ts'
import type { LayerPlan } from './layer-plan.ts'

/** Sweeps that tell a good move from a bad one; the split is settled fully at the end. */
const trialSweeps = 6
const targetsTried = 4
const failuresMax = 6

type Step = {
  expert: number
  from: number
  to: number
  /** `copy`: one more; `move`: from → to; `swap`: `other` goes the other way; `replace`: `other`, not needed, goes. */
  kind: 'copy' | 'move' | 'swap' | 'replace'
  other: number
  /** Estimated level of the worse of the two nodes afterwards. */
  level: number
}

/**
 * Takes load off the busiest node, one copy after the other, until the plan's balancedness reaches `goal` or `copiesMax`
 * copies were loaded that were not there before. A step that does not help is undone, and after some of those it ends.
 * Returns how many copies it loaded.
 */
export function improve(plan: LayerPlan, goal: number, copiesMax: number, why: (node: number) => string): number {
  let loaded = 0
  const failed = new Set<string>()
  while (loaded < copiesMax && failed.size < failuresMax && plan.balancedness() < goal) {
    const busiest = plan.busiest()
    const step = bestStep(plan, busiest, copiesMax - loaded, failed)
    if (step === null) break
    const before = plan.energy()
    const rows = plan.rows.map((parts) => [...parts])
    const homes = plan.homes.map((nodes) => [...nodes])
    const reasons = new Map(plan.reasons)
    apply(plan, step, why(busiest))
    plan.settle(trialSweeps)
    if (plan.energy() < before * (1 - 1e-7)) {
      loaded += costOf(step)
      failed.clear()
    } else {
      plan.restore(homes, rows, reasons)
      failed.add(keyOf(step))
    }
  }
  if (loaded > 0) plan.settle()
  return loaded
}

const costOf = ({ kind }: Step) => (kind === 'swap' ? 2 : 1)
const keyOf = ({ kind, expert, from, to, other }: Step) => `${kind} ${expert} ${from} ${to} ${other}`

function apply(plan: LayerPlan, { kind, expert, from, to, other }: Step, why: string): void {
  if (kind === 'swap' || kind === 'replace') plan.remove(other, to)
  if (kind === 'swap' || kind === 'move') plan.remove(expert, from)
  plan.add(expert, to, why)
  if (kind === 'swap') plan.add(other, from, why)
}

function bestStep(plan: LayerPlan, from: number, loadsMax: number, failed: ReadonlySet<string>): Step | null {
  let best: Step | null = null
  const consider = (step: Step) => {
    if (costOf(step) > loadsMax || step.level >= plan.level(from) * (1 - 1e-6)) return
    if (best !== null && step.level >= best.level * (1 - 1e-9)) return
    if (!failed.has(keyOf(step))) best = step
  }
  for (const to of lowestNodes(plan, from)) {
    const hasRoom = plan.freeSlots(to) > 0
    const spare = hasRoom ? -1 : dispensableAt(plan, to)
    for (const expert of plan.held[from] ?? []) {
      const rows = rowsAt(plan, expert, from)
      if (rows === 0 || plan.holds(expert, to)) continue
      const base = { expert, from, to, other: -1 }
      const canMove = mayReplace(plan, expert, from, to)
      if (hasRoom && plan.copies < plan.problem.copiesMax) {
        consider({ ...base, kind: 'copy', level: levelShared(plan, rows, from, to) })
      }
      if (hasRoom && canMove) consider({ ...base, kind: 'move', level: levelAfter(plan, rows, from, to) })
      if (spare >= 0) consider({ ...base, kind: 'replace', other: spare, level: levelShared(plan, rows, from, to) })
      if (hasRoom || !canMove) continue
      for (const other of plan.held[to] ?? []) {
        const back = rowsAt(plan, other, to)
        if (back >= rows || plan.holds(other, from) || !mayReplace(plan, other, to, from)) continue
        consider({ ...base, kind: 'swap', other, level: levelAfter(plan, rows - back, from, to) })
      }
    }
  }
  return best
}

function rowsAt(plan: LayerPlan, expert: number, node: number): number {
  return plan.rows[expert]?.[plan.homes[expert]?.indexOf(node) ?? -1] ?? 0
}

function levelAfter(plan: LayerPlan, rows: number, from: number, to: number): number {
  const { ranks } = plan.problem
  return Math.max(plan.level(from) - rows / (ranks[from] ?? 1), plan.level(to) + rows / (ranks[to] ?? 1))
}

/** With the rows divided so that both nodes end on the same level, as far as they suffice. */
function levelShared(plan: LayerPlan, rows: number, from: number, to: number): number {
  const { ranks } = plan.problem
  const [here, there] = [ranks[from] ?? 1, ranks[to] ?? 1]
  const even = (plan.level(from) - plan.level(to)) / (1 / here + 1 / there)
  return levelAfter(plan, Math.min(rows, Math.max(0, even)), from, to)
}

/** The zones of an expert stay as many as wanted when one copy goes from one node to another. */
function mayReplace(plan: LayerPlan, expert: number, from: number, to: number): boolean {
  const { zones } = plan.problem
  if (zones[from] === zones[to] || !isAloneInZone(plan, expert, from)) return true
  const gains = (plan.homes[expert] ?? []).every((home) => zones[home] !== zones[to])
  return gains || plan.zonesOf(expert) > zonesWanted(plan.problem)
}

/** An expert with more copies than wanted and hardly any rows there; -1 if there is none. */
function dispensableAt(plan: LayerPlan, node: number): number {
  const { minReplicas } = plan.problem
  for (const expert of plan.held[node] ?? []) {
    const count = plan.homes[expert]?.length ?? 0
    if (count <= minReplicas || rowsAt(plan, expert, node) > plan.level(node) * 1e-3) continue
    if (!isAloneInZone(plan, expert, node) || plan.zonesOf(expert) > zonesWanted(plan.problem)) return expert
  }
  return -1
}

function lowestNodes(plan: LayerPlan, except: number): number[] {
  const lowest: number[] = []
  for (let node = 0; node < plan.nodeLoads.length; node++) {
    if (node === except || (plan.problem.slots[node] ?? 0) === 0) continue
    let at = lowest.length
    while (at > 0 && plan.level(lowest[at - 1] ?? 0) > plan.level(node)) at--
    lowest.splice(at, 0, node)
    if (lowest.length > targetsTried) lowest.pop()
  }
  return lowest
}
