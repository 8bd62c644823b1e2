import { zonesWanted } from './demand.ts'
import { isAloneInZone } from './keep.ts'
import type { LayerPlan } from './layer-plan.ts'

/** Sweeps that tell a good move from a bad one; the split is settled fully at the end. */
const trialSweeps = 6
const targetsTried = 4
const failuresMax = 6
/** Of rows that a home takes over, the share that stays there: the rest flows on over the other experts it shares. */
const stayingShare = 0.25

type Step = {
  expert: number
  from: number
  to: number
  /**
   * `copy`: one more; `move`: from → to; `swap`: `other` goes the other way; `replace`: `other` goes, it is not needed;
   * `displace`: `other` makes room by going to `via`.
   */
  kind: 'copy' | 'move' | 'swap' | 'replace' | 'displace'
  other: number
  via: number
  /** Estimated level of the worse of the two nodes afterwards. */
  level: number
}

export type ImproveLimits = {
  /** Balancedness that is good enough. */
  goal: number
  /** Copies that may be loaded which were not there before. */
  loadsMax: number
  /** Copies in all. */
  copiesMax: number
}

/**
 * Takes load off the busiest node, one copy after the other. A step that does not help is undone, and after some of
 * those it ends. Returns how many copies it loaded.
 */
export function improve(plan: LayerPlan, limits: ImproveLimits, why: (node: number) => string): number {
  const { goal, loadsMax } = limits
  let loaded = 0
  const failed = new Set<string>()
  while (loaded < loadsMax && failed.size < failuresMax && plan.balancedness() < goal) {
    const busiest = plan.busiest()
    const step = bestStep(plan, busiest, { ...limits, loadsMax: loadsMax - loaded }, failed)
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

const costOf = ({ kind }: Step) => (kind === 'swap' || kind === 'displace' ? 2 : 1)
const keyOf = ({ kind, expert, from, to, other }: Step) => `${kind} ${expert} ${from} ${to} ${other}`

function apply(plan: LayerPlan, { kind, expert, from, to, other, via }: Step, why: string): void {
  if (kind === 'swap' || kind === 'replace' || kind === 'displace') plan.remove(other, to)
  if (kind === 'displace') plan.add(other, via, why)
  if (kind === 'swap' || kind === 'move') plan.remove(expert, from)
  plan.add(expert, to, why)
  if (kind === 'swap') plan.add(other, from, why)
}

function bestStep(
  plan: LayerPlan,
  from: number,
  { loadsMax, copiesMax }: ImproveLimits,
  failed: ReadonlySet<string>,
): Step | null {
  const canAdd = plan.copies < copiesMax
  let best: Step | null = null
  const consider = (step: Step) => {
    if (costOf(step) > loadsMax || step.level >= plan.level(from) * (1 - 1e-6)) return
    if (best !== null && step.level >= best.level * (1 - 1e-9)) return
    if (!failed.has(keyOf(step))) best = step
  }
  for (const to of lowestNodes(plan, from)) {
    const hasRoom = plan.freeSlots(to) > 0
    const spare = hasRoom ? -1 : dispensableAt(plan, to)
    const displaced = hasRoom || spare >= 0 || !canAdd ? null : displaceableAt(plan, to)
    for (const expert of plan.held[from] ?? []) {
      const rows = rowsAt(plan, expert, from)
      if (rows === 0 || plan.holds(expert, to)) continue
      const base = { expert, from, to, other: -1, via: -1 }
      const canMove = mayReplace(plan, expert, from, to)
      if (hasRoom && canAdd) {
        consider({ ...base, kind: 'copy', level: levelShared(plan, rows, from, to) })
      }
      if (hasRoom && canMove) consider({ ...base, kind: 'move', level: levelAfter(plan, rows, from, to) })
      if (spare >= 0) consider({ ...base, kind: 'replace', other: spare, level: levelShared(plan, rows, from, to) })
      if (displaced !== null) {
        // The rows that go with it are few: only where they arrive can they do harm.
        const arriving = plan.level(displaced.via) + displaced.rows / (plan.problem.ranks[displaced.via] ?? 1)
        const level = Math.max(levelShared(plan, rows, from, to), arriving)
        consider({ ...base, kind: 'displace', other: displaced.other, via: displaced.via, level })
      }
      if (hasRoom || !canMove) continue
      for (const other of plan.held[to] ?? []) {
        if (plan.holds(other, from) || !mayReplace(plan, other, to, from)) continue
        consider({ ...base, kind: 'swap', other, level: levelSwapped(plan, rows, other, from, to) })
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

/** The rows that `other` had at `to` follow it to `from`, or go to its lowest other home, whichever is better. */
function levelSwapped(plan: LayerPlan, rows: number, other: number, from: number, to: number): number {
  const { ranks } = plan.problem
  const back = rowsAt(plan, other, to)
  const following = levelAfter(plan, rows - back, from, to)
  let elsewhere = Number.POSITIVE_INFINITY
  for (const home of plan.homes[other] ?? []) {
    if (home !== to) elsewhere = Math.min(elsewhere, plan.level(home) + (stayingShare * back) / (ranks[home] ?? 1))
  }
  const leaving = Math.max(
    plan.level(from) - rows / (ranks[from] ?? 1),
    plan.level(to) + (rows - back) / (ranks[to] ?? 1),
    elsewhere,
  )
  return Math.min(following, leaving)
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

/** The expert with the fewest rows at `node` that may go to the lowest node with a free slot. */
function displaceableAt(plan: LayerPlan, node: number): { other: number; via: number; rows: number } | null {
  let via = -1
  for (let other = 0; other < plan.nodeLoads.length; other++) {
    if (plan.freeSlots(other) > 0 && (via < 0 || plan.level(other) < plan.level(via))) via = other
  }
  if (via < 0) return null
  let best: { other: number; via: number; rows: number } | null = null
  for (const other of plan.held[node] ?? []) {
    const rows = rowsAt(plan, other, node)
    if (best !== null && rows >= best.rows) continue
    if (!plan.holds(other, via) && mayReplace(plan, other, node, via)) best = { other, via, rows }
  }
  return best
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
