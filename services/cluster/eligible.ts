import { protocolVersion } from '../config/version.ts'
import type { NodeEntry } from './node.ts'
import type { PlannerNode } from './planner/plan.ts'
import type { ClusterView } from './view.ts'

export type EligibleOptions = {
  modelDigest: string
  /** Numerics class of the present placement; it stays while one of its nodes is there. */
  presentNumerics: string | null
  /** The class to choose where no placement decides. */
  preferredNumerics: string
  /** Nodes to do without for now, and why. */
  excluded: ReadonlyMap<string, string>
}

export type Eligible = {
  /** By id. */
  nodes: PlannerNode[]
  numerics: string
  /** Expert nodes that are alive but get no experts: node id → why, for people. */
  excluded: Map<string, string>
}

/** Which expert nodes may get experts. All of one numerics class: others would compute other bits. */
export function eligibleNodes(view: ClusterView, options: EligibleOptions): Eligible {
  const excluded = new Map<string, string>()
  const candidates: NodeEntry[] = []
  for (const entry of view.nodes.values()) {
    const { record } = entry
    if (record.role !== 'expert') continue
    const reason = whyNot(view, entry, options)
    if (reason === null) candidates.push(entry)
    else excluded.set(record.id, reason)
  }
  const numerics = chooseNumerics(
    candidates.map(({ record }) => record.numerics),
    options,
  )
  const nodes: PlannerNode[] = []
  for (const { record } of candidates) {
    if (record.numerics === numerics) {
      nodes.push({ id: record.id, zone: record.zone, memoryBytes: record.memoryBytes, ranks: record.ranks })
    } else {
      excluded.set(record.id, `its numerics class is ${record.numerics}, the model runs on ${numerics}`)
    }
  }
  nodes.sort((a, b) => (a.id < b.id ? -1 : 1))
  return { nodes, numerics, excluded }
}

function whyNot(view: ClusterView, { record, status }: NodeEntry, options: EligibleOptions): string | null {
  if (record.protocolVersion !== protocolVersion) {
    return `it speaks protocol version ${record.protocolVersion}, this cluster ${protocolVersion}`
  }
  if (record.modelDigest !== '' && record.modelDigest !== options.modelDigest) {
    return `it serves another model, ${record.modelDigest.slice(0, 12)}`
  }
  const suspended = view.suspended.get(record.id)
  if (suspended !== undefined) return `it is suspended: ${suspended}`
  if (view.drained.has(record.id)) return 'it is drained'
  if (status.state === 'leaving') return 'it is about to leave'
  return options.excluded.get(record.id) ?? null
}

/** The class of the present placement while it has a node, else the preferred one, else that of most nodes. */
function chooseNumerics(classes: readonly string[], options: EligibleOptions): string {
  const { presentNumerics, preferredNumerics } = options
  if (presentNumerics !== null && classes.includes(presentNumerics)) return presentNumerics
  if (classes.includes(preferredNumerics)) return preferredNumerics
  const counts = new Map<string, number>()
  for (const name of classes) counts.set(name, (counts.get(name) ?? 0) + 1)
  return [...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))[0]?.[0] ?? ''
}
