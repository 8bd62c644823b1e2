import { copiesWanted, type Demand } from './demand.ts'
import { LayerPlan, type LayerProblem } from './layer-plan.ts'

/**
 * Two nodes that share one expert already get a second one only to avoid this share of the mean load. Nodes of equal load
 * would else be chosen together again and again, and rows can't flow from a pair that shares all its experts to others.
 */
const sharedPenaltyShare = 0.25

/**
 * Several homes each, from nothing: experts by falling load per copy, each copy to the node with the lowest level that
 * has a free slot, on different nodes and in different zones. Then the rows are split by weight.
 *
 * Going only by load could fill the slots so that the last experts find two free ones on the same node. What keeps that
 * from happening: with n experts still to come, a node with at least n + 1 free slots can't make use of all of them
 * unless it takes the present one too. Slots may be wasted that way only as long as there are more than needed (`slack`).
 */
export function spread(problem: LayerProblem, demand: Demand): LayerPlan {
  const plan = new LayerPlan(problem)
  const wanted = copiesWanted(problem, demand.replicas)
  const { loads } = problem
  const perCopy = Array.from(loads, (load, expert) => load / Math.max(1, wanted[expert] ?? 1))
  const order = perCopy.map((_, expert) => expert)
  order.sort((a, b) => (perCopy[b] ?? 0) - (perCopy[a] ?? 0) || a - b)
  const room = new Room(plan, demand)
  for (const [index, expert] of order.entries()) {
    room.startExpert(order.length - index - 1)
    for (let copy = 0; copy < (wanted[expert] ?? 0); copy++) {
      const isExtra = copy >= demand.replicas
      const node = isExtra ? room.chooseExtra(expert) : room.choose(expert, demand.replicas - copy)
      if (node < 0) break
      room.take(expert, node, isExtra)
      plan.add(expert, node, '')
      // An equal share for now: enough to see which nodes fill up.
      plan.rows[expert]?.splice(-1, 1, perCopy[expert] ?? 0)
      plan.nodeLoads[node] = (plan.nodeLoads[node] ?? 0) + (perCopy[expert] ?? 0)
    }
  }
  plan.settle()
  return plan
}

/**
 * Free slots by node and zone, and which of them must not be wasted. A node (zone) is "full" of room when its free slots
 * exceed the experts still to come; skipping it wastes one of them.
 */
class Room {
  readonly #plan: LayerPlan
  readonly #demand: Demand
  readonly #free: Int32Array
  readonly #zoneFree: Float64Array
  readonly #zoneTaken: Uint8Array
  #after = 0
  #nodeSlack = 0
  #zoneSlack = 0
  #fullNodesSkipped = 0
  #fullZonesSkipped = 0
  #zonesTaken = 0
  /** [nodes * nodes] experts that two nodes have in common. */
  readonly #shared: Uint16Array
  readonly #sharedPenalty: number

  constructor(plan: LayerPlan, demand: Demand) {
    this.#plan = plan
    this.#demand = demand
    this.#free = plan.problem.slots.slice()
    this.#zoneFree = new Float64Array(plan.problem.zoneCount)
    this.#zoneTaken = new Uint8Array(plan.problem.zoneCount)
    this.#shared = new Uint16Array(this.#free.length ** 2)
    this.#sharedPenalty = (sharedPenaltyShare * plan.problem.total) / plan.problem.rankSum
    for (const [node, count] of this.#free.entries()) {
      const zone = this.#zone(node)
      this.#zoneFree[zone] = (this.#zoneFree[zone] ?? 0) + count
    }
  }

  /** `after`: experts still to come after this one. */
  startExpert(after: number): void {
    this.#after = after
    this.#zoneTaken.fill(0)
    this.#zonesTaken = 0
    this.#nodeSlack = -this.#demand.replicas * (after + 1)
    this.#zoneSlack = -this.#demand.zones * (after + 1)
    this.#fullNodesSkipped = 0
    this.#fullZonesSkipped = 0
    for (const count of this.#free) {
      this.#nodeSlack += Math.min(count, after + 1)
      if (count > after) this.#fullNodesSkipped++
    }
    for (const count of this.#zoneFree) {
      this.#zoneSlack += Math.min(count, after + 1)
      if (count > after) this.#fullZonesSkipped++
    }
  }

  /** Node for one of the copies that every expert gets, `left` of them to place; -1 if there is none. */
  choose(expert: number, left: number): number {
    const zonesLeft = this.#demand.zones - this.#zonesTaken
    const mustBeFullZone = this.#fullZonesSkipped - this.#zoneSlack >= zonesLeft
    // With each copy in its own zone, zones are what must be counted; any of their nodes will do.
    const isByZone = this.#demand.zones === this.#demand.replicas
    const mustBeFullNode = !isByZone && this.#fullNodesSkipped - this.#nodeSlack >= left
    const inZone = (node: number) => {
      const zone = this.#zone(node)
      if (zonesLeft <= 0) return this.#isSpareZone(zone)
      return this.#zoneTaken[zone] === 0 && (!mustBeFullZone || this.#isFullZone(zone))
    }
    const strict = this.#lowest(expert, (node) => inZone(node) && (!mustBeFullNode || this.#isFullNode(node)))
    if (strict >= 0) return strict
    const elsewhere = this.#lowest(expert, inZone)
    return elsewhere >= 0 ? elsewhere : this.#lowest(expert, () => true)
  }

  /** Node for a copy beyond those, only of slots that nobody else will need; -1 if there is none. */
  chooseExtra(expert: number): number {
    const isSpare = (node: number) =>
      (this.#isFullNode(node) || this.#nodeSlack - this.#fullNodesSkipped > 0) && this.#isSpareZone(this.#zone(node))
    // While the minimum is not reached, a zone without a copy comes first.
    if ((this.#plan.homes[expert]?.length ?? 0) < this.#plan.problem.minReplicas) {
      const elsewhere = this.#lowest(expert, (node) => this.#zoneTaken[this.#zone(node)] === 0 && isSpare(node))
      if (elsewhere >= 0) return elsewhere
    }
    return this.#lowest(expert, isSpare)
  }

  take(expert: number, node: number, isExtra: boolean): void {
    const zone = this.#zone(node)
    const nodes = this.#free.length
    for (const home of this.#plan.homes[expert] ?? []) {
      this.#shared[home * nodes + node] = (this.#shared[home * nodes + node] ?? 0) + 1
      this.#shared[node * nodes + home] = (this.#shared[node * nodes + home] ?? 0) + 1
    }
    if (isExtra) {
      if (!this.#isFullNode(node)) this.#nodeSlack--
    } else if (this.#isFullNode(node)) this.#fullNodesSkipped--
    if (isExtra || this.#zonesTaken >= this.#demand.zones) {
      if (!this.#isFullZone(zone)) this.#zoneSlack--
    } else if (this.#isFullZone(zone) && this.#zoneTaken[zone] === 0) this.#fullZonesSkipped--
    if (this.#zoneTaken[zone] === 0) {
      this.#zoneTaken[zone] = 1
      this.#zonesTaken++
    }
    this.#free[node] = (this.#free[node] ?? 0) - 1
    this.#zoneFree[zone] = (this.#zoneFree[zone] ?? 0) - 1
  }

  #zone(node: number): number {
    return this.#plan.problem.zones[node] ?? 0
  }

  #isFullNode(node: number): boolean {
    return (this.#free[node] ?? 0) > this.#after
  }

  #isFullZone(zone: number): boolean {
    return (this.#zoneFree[zone] ?? 0) > this.#after
  }

  #isSpareZone(zone: number): boolean {
    return this.#isFullZone(zone) || this.#zoneSlack - this.#fullZonesSkipped > 0
  }

  #lowest(expert: number, accepts: (node: number) => boolean): number {
    let best = -1
    let bestLevel = 0
    const homes = this.#plan.homes[expert] ?? []
    for (let node = 0; node < this.#free.length; node++) {
      if ((this.#free[node] ?? 0) <= 0) continue
      let level = this.#plan.level(node)
      for (const home of homes) level += this.#sharedPenalty * (this.#shared[home * this.#free.length + node] ?? 0)
      const isBetter =
        best < 0 || level < bestLevel || (level === bestLevel && (this.#free[node] ?? 0) > (this.#free[best] ?? 0))
      if (!isBetter || !accepts(node) || this.#plan.holds(expert, node)) continue
      best = node
      bestLevel = level
    }
    return best
  }
}
