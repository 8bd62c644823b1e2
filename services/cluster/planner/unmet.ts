import { zonesWanted } from './demand.ts'
import type { LayerPlan } from './layer-plan.ts'

/** A rule that the plan could not keep, for how many shards (of rule `memory`: nodes), and a sentence for people. */
export type Unmet = { rule: 'coverage' | 'replicas' | 'zones' | 'memory'; text: string; count: number }

const namesMax = 5

export type UnmetNode = { id: string; memoryBytes: number; slots: number }

/** `smallestShardBytes`: what a node must have room for to be of any use. */
export function unmetOf(
  plans: readonly LayerPlan[],
  nodes: readonly UnmetNode[],
  minReplicas: number,
  smallestShardBytes: number,
): Unmet[] {
  let shards = 0
  let uncovered = 0
  let tooFew = 0
  let tooClose = 0
  let wantedZones = 1
  for (const plan of plans) {
    const zones = zonesWanted(plan.problem)
    wantedZones = Math.max(wantedZones, zones)
    for (const [expert, homes] of plan.homes.entries()) {
      shards++
      if (homes.length === 0) uncovered++
      if (homes.length < minReplicas) tooFew++
      if (homes.length > 0 && plan.zonesOf(expert) < Math.min(zones, homes.length)) tooClose++
    }
  }
  const room = nodes.reduce((sum, { slots }) => sum + slots, 0)
  const nodesText = `${nodes.length} ${nodes.length === 1 ? 'node' : 'nodes'}`
  const unmet: Unmet[] = []
  if (uncovered > 0) {
    const text =
      nodes.length === 0
        ? `no node can hold experts: ${uncovered} have no copy`
        : `${uncovered} of ${shards} experts have no copy: the memory of ${nodesText} holds ${room}`
    unmet.push({ rule: 'coverage', text, count: uncovered })
  }
  if (tooFew > 0) {
    const cause =
      nodes.length < minReplicas
        ? `only ${nodesText} can hold experts`
        : `the memory of ${nodesText} does not hold more (${shards * minReplicas} wanted)`
    const text = `${tooFew} of ${shards} experts have fewer copies than minReplicas ${minReplicas}: ${cause}`
    unmet.push({ rule: 'replicas', text, count: tooFew })
  }
  if (tooClose > 0) {
    const text = `the copies of ${tooClose} of ${shards} experts are in fewer than ${wantedZones} zones: some zone has too little memory`
    unmet.push({ rule: 'zones', text, count: tooClose })
  }
  const useless = nodes.filter(({ slots }) => slots === 0)
  if (useless.length > 0) {
    const names = useless.slice(0, namesMax).map(({ id, memoryBytes }) => `${id} (${memoryBytes} bytes)`)
    const others = useless.length > namesMax ? ` and ${useless.length - namesMax} others` : ''
    const text = `too little memory for one expert of ${smallestShardBytes} bytes: ${names.join(', ')}${others}`
    unmet.push({ rule: 'memory', text, count: useless.length })
  }
  return unmet
}
