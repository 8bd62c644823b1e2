import type { Clock } from './clock.ts'
import type { NodeEntry, NodeGauges, NodeRecord, NodeStatus } from './node.ts'
import type { PlacementId } from './placement.ts'
import type { Leader, Store } from './store.ts'

export type MembershipOptions = {
  store: Store
  self: NodeRecord
  status?: NodeStatus
  clock: Clock
  leaseMs: number
  /** 0 ≤ x < 1: spreads registrations after an outage. */
  random: () => number
  /** Called before each beat. */
  gauges?: () => NodeGauges
}

/** The cluster as one process sees it: the last known state while the store is away. Never changed, only replaced. */
export type ClusterView = {
  readonly nodes: ReadonlyMap<string, NodeEntry>
  /** Nodes whose lease ended, for a minute; for people. */
  readonly lost: ReadonlyMap<string, LostNode>
  readonly drained: ReadonlySet<string>
  /** Node id → why. */
  readonly suspended: ReadonlyMap<string, string>
  readonly leader: Leader | null
  readonly target: PlacementId | null
  readonly active: PlacementId | null
  /** Changes where the store was replaced by an empty one; 0 before the first contact. */
  readonly generation: number
  /** Whether the last beat got through. */
  readonly isReachable: boolean
  /** The store was away or is new: nodes that it does not list may be alive. */
  readonly isSettling: boolean
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
  | { kind: 'generation' }
  | { kind: 'reachable'; isReachable: boolean }

export interface Membership {
  /** Registers and starts to beat. Rejects with NODE_ID_TAKEN; where the store is away it goes on trying and resolves. */
  start(): Promise<void>
  view(): ClusterView
  /** Calls after each view that differs, with all that changed, until the result is called. */
  onChange(listener: (changes: readonly MembershipChange[], view: ClusterView) => void): () => void
  /** Own status; told to the store soon (within 250 ms), and again after an outage. */
  update(status: NodeStatus): void
  /** Ends the beats and leaves. */
  stop(): Promise<void>
}
