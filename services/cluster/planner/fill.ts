import { LayerPlan, type LayerProblem } from './layer-plan.ts'

const searchSteps = 24

/**
 * One home each and perfect balance, from nothing. Every node is filled to the same level: some experts whole, then a
 * piece of the largest one left; the rest of that goes on to the next node. Each node splits at most one expert, so
 * experts + nodes - 1 copies suffice, and with as many slots the level is the mean. With fewer, the lowest level that
 * works is searched. The whole ones are consecutive in the order of load, as small as may be while the largest one left
 * still reaches the level (a sliding window, known from packing splittable items under a limit of their number).
 * Null if no level works.
 */
export function fill(problem: LayerProblem): LayerPlan | null {
  const mean = problem.total / problem.rankSum
  const perfect = fillTo(problem, mean)
  if (perfect !== null) return perfect
  let low = mean
  let high = mean
  let best: LayerPlan | null = null
  for (let i = 0; i < 6 && best === null; i++) {
    low = high
    high *= 2
    best = fillTo(problem, high)
  }
  if (best === null) return null
  for (let step = 0; step < searchSteps && high - low > mean * 1e-4; step++) {
    const middle = (low + high) / 2
    const plan = fillTo(problem, middle)
    if (plan === null) low = middle
    else {
      high = middle
      best = plan
    }
  }
  return best
}

/** Null if the experts do not fit below `level` (rows/s per rank). */
function fillTo(problem: LayerProblem, level: number): LayerPlan | null {
  const { loads, ranks, slots, total } = problem
  const plan = new LayerPlan(problem)
  // Smaller pieces than this are rounding errors.
  const crumb = total * 1e-12
  // Ascending by what is left of them.
  const left = Array.from(loads, (load, expert) => ({ expert, load }))
  left.sort((a, b) => a.load - b.load || a.expert - b.expert)
  const put = (expert: number, node: number, load: number) => {
    plan.add(expert, node, '')
    plan.rows[expert]?.splice(-1, 1, load)
    plan.nodeLoads[node] = (plan.nodeLoads[node] ?? 0) + load
  }
  for (let node = 0; node < ranks.length && left.length > 0; node++) {
    const slotCount = slots[node] ?? 0
    if (slotCount === 0) continue
    const capacity = level * (ranks[node] ?? 1) + crumb
    const { start, count, load } = chooseWindow(left, slotCount - 1, capacity)
    for (const item of left.splice(start, count)) put(item.expert, node, item.load)
    const largest = left.pop()
    if (largest === undefined) break
    const piece = Math.min(largest.load, capacity - load)
    const rest = largest.load - piece
    if (piece > 2 * crumb || rest <= crumb) put(largest.expert, node, piece)
    if (rest > crumb) insert(left, { expert: largest.expert, load: piece > 2 * crumb ? rest : largest.load })
  }
  return left.length === 0 ? plan : null
}

type Item = { expert: number; load: number }

/** At most `countMax` consecutive ones below `capacity`, never the last one: that is the largest, to be split. */
function chooseWindow(
  items: Item[],
  countMax: number,
  capacity: number,
): { start: number; count: number; load: number } {
  const last = items.length - 1
  let count = 0
  let load = 0
  while (count < Math.min(countMax, last) && load + (items[count]?.load ?? 0) <= capacity) {
    load += items[count]?.load ?? 0
    count++
  }
  let start = 0
  const largest = items[last]?.load ?? 0
  if (count < countMax) return { start, count, load }
  while (start + count < last && load + largest < capacity) {
    load += (items[start + count]?.load ?? 0) - (items[start]?.load ?? 0)
    start++
  }
  return { start, count, load }
}

function insert(items: Item[], item: Item): void {
  let low = 0
  let high = items.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((items[middle]?.load ?? 0) <= item.load) low = middle + 1
    else high = middle
  }
  items.splice(low, 0, item)
}
