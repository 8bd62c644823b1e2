import type { NodeEntry } from './node.ts'
import { type PlacementId, sameId } from './placement.ts'
import type { BeatReply, DrainedBy, Leader } from './store.ts'

/**
 * The cluster as one process sees it: what the store said last. Never changed, only replaced. This file turns a reply of
 * the store into the next view and the list of what is different; it knows neither time nor network.
 */
export type ClusterView = {
  readonly nodes: ReadonlyMap<string, NodeEntry>
  /** Nodes whose lease ended, for a minute; for people. */
  readonly lost: ReadonlyMap<string, LostNode>
  readonly drained: ReadonlyMap<string, DrainedBy>
  /** Node id → why. */
  readonly suspended: ReadonlyMap<string, string>
  /** How often a node was suspended or taken back, as far as the store remembers. */
  readonly suspensions: number
  readonly leader: Leader | null
  /** As the store has them: null in a store that came back empty, until the leader writes them again. */
  readonly target: PlacementId | null
  readonly active: PlacementId | null
  /** Changes where the store was replaced by an empty one; 0 before the first contact. */
  readonly generation: number
  /** Whether the last beat got through. */
  readonly isReachable: boolean
  /** The store was away or is new: nodes that it does not list may be alive, and are kept in `nodes`. */
  readonly isSettling: boolean
  /** Those of `nodes` that a new store has not heard of yet. */
  readonly unheard: ReadonlySet<string>
}

export type LostNode = { entry: NodeEntry; sinceMs: number; reason: string }

export type MembershipChange =
  | { kind: 'joined'; id: string }
  /** Another process under the same id. */
  | { kind: 'replaced'; id: string }
  | { kind: 'changed'; id: string }
  | { kind: 'left'; id: string }
  | { kind: 'lost'; id: string }
  | { kind: 'flags' }
  | { kind: 'leader' }
  | { kind: 'placement' }
  /** The store is a new one: it has lost flags and placement. */
  | { kind: 'generation' }
  | { kind: 'reachable'; isReachable: boolean }

export const emptyView: ClusterView = {
  nodes: new Map(),
  lost: new Map(),
  drained: new Map(),
  suspended: new Map(),
  suspensions: 0,
  leader: null,
  target: null,
  active: null,
  generation: 0,
  isReachable: false,
  isSettling: true,
  unheard: new Set(),
}

const lostKeepMs = 60_000
const lostMax = 256

/** The next view; `view` itself stays. */
export function applyReply(
  view: ClusterView,
  reply: BeatReply,
  nowMs: number,
): { view: ClusterView; changes: MembershipChange[] } {
  const changes: MembershipChange[] = []
  const isNewStore = view.generation !== 0 && reply.cursor.generation !== view.generation
  const nodes = new Map(view.nodes)
  const lost = new Map([...view.lost].filter(([, { sinceMs }]) => nowMs - sinceMs < lostKeepMs))
  const unheard = new Set(view.unheard)

  const lose = (id: string, reason: string) => {
    const entry = nodes.get(id)
    if (!entry) return
    nodes.delete(id)
    unheard.delete(id)
    lost.set(id, { entry, sinceMs: nowMs, reason })
    changes.push({ kind: 'lost', id })
  }

  if (reply.isFull) for (const id of nodes.keys()) unheard.add(id)
  for (const entry of reply.nodes) {
    const { id } = entry.record
    const known = nodes.get(id)
    const kind = kindOfChange(known, entry)
    unheard.delete(id)
    lost.delete(id)
    nodes.set(id, kind === null && known ? known : entry)
    if (kind !== null) changes.push({ kind, id })
  }
  for (const { id, expired } of reply.left) {
    if (!nodes.has(id)) continue
    if (expired) lose(id, 'its lease ended')
    else {
      nodes.delete(id)
      unheard.delete(id)
      changes.push({ kind: 'left', id })
    }
  }
  if (reply.graceMs === 0) for (const id of [...unheard]) lose(id, 'it did not come back after the store did')
  for (const id of lost.keys()) {
    if (lost.size <= lostMax) break
    lost.delete(id)
  }

  // A new store knows no flags until the leader has written them again: a suspended node must not be used meanwhile.
  const isSettling = reply.graceMs > 0
  const keepsFlags = isNewStore || (isSettling && unheard.size > 0)
  const drained = new Map([...(keepsFlags ? view.drained : []), ...reply.drained])
  const suspended = new Map([...(keepsFlags ? view.suspended : []), ...reply.suspended])
  const isSame = sameKeys(drained, view.drained) && sameKeys(suspended, view.suspended)
  if (!isSame || reply.suspensions !== view.suspensions) changes.push({ kind: 'flags' })
  if (reply.leader?.token !== view.leader?.token) changes.push({ kind: 'leader' })
  const { target, active } = reply
  if (!sameId(target, view.target) || !sameId(active, view.active)) changes.push({ kind: 'placement' })
  if (isNewStore) changes.push({ kind: 'generation' })
  if (!view.isReachable) changes.push({ kind: 'reachable', isReachable: true })

  const next = {
    nodes,
    lost,
    drained,
    suspended,
    suspensions: reply.suspensions,
    leader: reply.leader,
    target,
    active,
    generation: reply.cursor.generation,
    isReachable: true,
    isSettling,
    unheard,
  }
  return { view: next, changes }
}

/** The store did not answer: everything stays as it was. */
export function applyOutage(view: ClusterView): { view: ClusterView; changes: MembershipChange[] } {
  if (!view.isReachable) return { view, changes: [] }
  return { view: { ...view, isReachable: false }, changes: [{ kind: 'reachable', isReachable: false }] }
}

function kindOfChange(known: NodeEntry | undefined, entry: NodeEntry): 'joined' | 'replaced' | 'changed' | null {
  if (!known) return 'joined'
  if (known.record.incarnation !== entry.record.incarnation) return 'replaced'
  return JSON.stringify(known) === JSON.stringify(entry) ? null : 'changed'
}

function sameKeys(a: { size: number; keys(): Iterable<string> }, b: { size: number; has(key: string): boolean }) {
  if (a.size !== b.size) return false
  for (const key of a.keys()) if (!b.has(key)) return false
  return true
}
