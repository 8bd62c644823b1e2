/** One layer's share of the question: who may hold what. Nodes and zones are indexes. */
export type LayerProblem = {
  layer: number
  experts: number
  /** [experts] rows/s, none negative, not all zero. */
  loads: Float64Array
  /** Sum of `loads`. */
  total: number
  /** [nodes] ranks, each at least 1; what a node carries counts per rank. */
  ranks: Float64Array
  rankSum: number
  /** [nodes] copies that a node may hold of this layer. */
  slots: Int32Array
  /** [nodes] */
  zones: Int32Array
  zoneCount: number
  minReplicas: number
  /** More copies than this are memory without use. */
  copiesMax: number
}

const sweepsMax = 120
/** Load of the busiest node over the mean: closer than this to the optimum is not worth another sweep. */
const settledRatio = 1.0005
const progressMin = 1e-5

/**
 * Homes of one layer's experts and how the rows are split over them.
 *
 * The split is found by filling: take one expert's rows away, pour them over its homes like water, lowest level first,
 * go on with the next. Each step lowers the sum of squared loads (per rank), a convex function whose minimum also has
 * the lowest possible maximum, because rows can always flow from a higher home to a lower one.
 */
export class LayerPlan {
  readonly problem: LayerProblem
  /** By expert: node indexes. */
  readonly homes: number[][]
  /** By expert, as `homes`: rows/s. */
  rows: number[][]
  /** By node: experts. */
  readonly held: number[][]
  /** [nodes] rows/s */
  readonly nodeLoads: Float64Array
  /** Why a copy was added, by expert * nodes + node. */
  readonly reasons = new Map<number, string>()
  copies = 0

  constructor(problem: LayerProblem) {
    this.problem = problem
    this.homes = Array.from({ length: problem.experts }, () => [])
    this.rows = Array.from({ length: problem.experts }, () => [])
    this.held = Array.from(problem.ranks, () => [])
    this.nodeLoads = new Float64Array(problem.ranks.length)
  }

  reason(expert: number, node: number): string {
    return this.reasons.get(expert * this.nodeLoads.length + node) ?? ''
  }

  explain(expert: number, node: number, why: string): void {
    this.reasons.set(expert * this.nodeLoads.length + node, why)
  }

  /** Its rows are 0 until the next `pour` or `settle`. */
  add(expert: number, node: number, why: string): void {
    this.homes[expert]?.push(node)
    this.rows[expert]?.push(0)
    this.held[node]?.push(expert)
    this.copies++
    if (why !== '') this.explain(expert, node, why)
  }

  /** Back to what `homes`, `rows` and `reasons` were, given copies of them. */
  restore(homes: readonly number[][], rows: number[][], reasons: ReadonlyMap<number, string>): void {
    for (const held of this.held) held.length = 0
    this.copies = 0
    for (const [expert, nodes] of homes.entries()) {
      this.homes[expert]?.splice(0, Number.POSITIVE_INFINITY, ...nodes)
      for (const node of nodes) this.held[node]?.push(expert)
      this.copies += nodes.length
    }
    this.rows = rows
    this.reasons.clear()
    for (const [key, why] of reasons) this.reasons.set(key, why)
    this.#recount()
  }

  /** Its rows are lost until the next `pour` or `settle`. */
  remove(expert: number, node: number): void {
    const homes = this.homes[expert] ?? []
    const index = homes.indexOf(node)
    if (index < 0) return
    homes.splice(index, 1)
    const rows = this.rows[expert]?.splice(index, 1)[0] ?? 0
    this.nodeLoads[node] = (this.nodeLoads[node] ?? 0) - rows
    const held = this.held[node] ?? []
    held.splice(held.indexOf(expert), 1)
    this.copies--
    this.reasons.delete(expert * this.nodeLoads.length + node)
  }

  holds(expert: number, node: number): boolean {
    return this.homes[expert]?.includes(node) === true
  }

  freeSlots(node: number): number {
    return (this.problem.slots[node] ?? 0) - (this.held[node]?.length ?? 0)
  }

  /** Rows/s per rank. */
  level(node: number): number {
    return (this.nodeLoads[node] ?? 0) / (this.problem.ranks[node] ?? 1)
  }

  busiest(): number {
    let busiest = 0
    for (let node = 1; node < this.nodeLoads.length; node++) if (this.level(node) > this.level(busiest)) busiest = node
    return busiest
  }

  /** Mean over maximum of the nodes' levels. */
  balancedness(): number {
    const highest = this.nodeLoads.length === 0 ? 0 : this.level(this.busiest())
    return highest === 0 ? 1 : this.nodeLoads.reduce((sum, load) => sum + load, 0) / this.problem.rankSum / highest
  }

  /** What `settle` minimises. */
  energy(): number {
    let sum = 0
    for (let node = 0; node < this.nodeLoads.length; node++) sum += (this.nodeLoads[node] ?? 0) * this.level(node)
    return sum
  }

  zonesOf(expert: number): number {
    const homes = this.homes[expert] ?? []
    const { zones } = this.problem
    let count = 0
    for (let i = 0; i < homes.length; i++) {
      let isNew = true
      for (let j = 0; j < i && isNew; j++) isNew = zones[homes[i] ?? 0] !== zones[homes[j] ?? 0]
      if (isNew) count++
    }
    return count
  }

  /** Splits one expert's rows anew, the others' staying. */
  pour(expert: number): void {
    pour(this.homes[expert] ?? [], this.rows[expert] ?? [], this.problem.loads[expert] ?? 0, this)
  }

  /** Splits all rows as evenly over the nodes as the homes allow, starting from the present split. */
  settle(sweeps = sweepsMax): void {
    this.#recount()
    const { experts, total, rankSum } = this.problem
    const enough = (total / rankSum) * settledRatio
    let before = Number.POSITIVE_INFINITY
    for (let sweep = 0; sweep < sweeps; sweep++) {
      // Back and forth, so that rows travel along a chain of shared experts in either direction within one sweep.
      for (let i = 0; i < experts; i++) this.pour(sweep % 2 === 0 ? i : experts - 1 - i)
      const energy = this.energy()
      if (this.level(this.busiest()) <= enough || before - energy <= progressMin * progressMin * energy) break
      before = energy
    }
    this.#recount()
  }

  #recount(): void {
    this.nodeLoads.fill(0)
    for (const [expert, homes] of this.homes.entries()) {
      const rows = this.rows[expert] ?? []
      for (let i = 0; i < homes.length; i++) {
        const node = homes[i] ?? 0
        this.nodeLoads[node] = (this.nodeLoads[node] ?? 0) + (rows[i] ?? 0)
      }
    }
  }
}

/** Innermost loop of the planner: plain indexes, nothing allocated but for experts with many homes. */
function pour(homes: number[], rows: number[], load: number, plan: LayerPlan): void {
  const { nodeLoads } = plan
  const { ranks } = plan.problem
  const count = homes.length
  for (let i = 0; i < count; i++) nodeLoads[homes[i] ?? 0] = (nodeLoads[homes[i] ?? 0] ?? 0) - (rows[i] ?? 0)
  // Lowest level first, by insertion; `homes` keeps its order otherwise, it has few entries.
  for (let i = 1; i < count; i++) {
    const node = homes[i] ?? 0
    const level = (nodeLoads[node] ?? 0) / (ranks[node] ?? 1)
    let j = i - 1
    while (j >= 0 && (nodeLoads[homes[j] ?? 0] ?? 0) / (ranks[homes[j] ?? 0] ?? 1) > level) {
      homes[j + 1] = homes[j] ?? 0
      j--
    }
    homes[j + 1] = node
  }
  let water = load
  let width = 0
  let surface = 0
  for (let i = 0; i < count; i++) {
    const node = homes[i] ?? 0
    if (i > 0 && surface <= (nodeLoads[node] ?? 0) / (ranks[node] ?? 1)) break
    water += nodeLoads[node] ?? 0
    width += ranks[node] ?? 1
    surface = water / width
  }
  for (let i = 0; i < count; i++) {
    const node = homes[i] ?? 0
    const before = nodeLoads[node] ?? 0
    const share = Math.max(0, surface * (ranks[node] ?? 1) - before)
    rows[i] = share
    nodeLoads[node] = before + share
  }
}
