import { eplb } from './eplb.ts'
import { LayerPlan, type LayerProblem } from './layer-plan.ts'

/**
 * A layer by DeepSeek's EPLB: nodes are its GPUs, all with as many slots as the one with the fewest, in one group; rows
 * are split equally over an expert's copies. It knows neither replicas nor zones nor present homes. Where it puts two
 * copies on one node, that node gets twice the weight. Null if there are fewer slots than experts.
 */
export function eplbLayer(problem: LayerProblem): LayerPlan | null {
  const { slots, loads, experts } = problem
  const nodes = slots.length
  const slotsPerNode = slots.reduce((fewest, count) => Math.min(fewest, count), nodes === 0 ? 0 : experts)
  if (slotsPerNode * nodes < experts) return null
  const { phy2log, logcnt } = eplb({
    weights: [Array.from(loads)],
    numReplicas: slotsPerNode * nodes,
    numGroups: 1,
    numNodes: 1,
    numGpus: nodes,
  })
  const plan = new LayerPlan(problem)
  for (const [slot, expert] of phy2log[0]?.entries() ?? []) {
    const node = Math.floor(slot / slotsPerNode)
    const rows = (loads[expert] ?? 0) / (logcnt[0]?.[expert] ?? 1)
    if (!plan.holds(expert, node)) plan.add(expert, node, 'EPLB wants it there')
    const parts = plan.rows[expert] ?? []
    const index = plan.homes[expert]?.indexOf(node) ?? 0
    parts[index] = (parts[index] ?? 0) + rows
    plan.nodeLoads[node] = (plan.nodeLoads[node] ?? 0) + rows
  }
  return plan
}
