import type { Profile } from './profile.ts'

/** What the Cluster API shows and does: the leader's view, or in the embedded form this process alone. */
export type NodeStateName = 'JOINING' | 'READY' | 'LATE' | 'DRAINING' | 'DRAINED' | 'SUSPENDED' | 'LOST'

export type NodeStatus = {
  id: string
  role: 'COORDINATOR' | 'EXPERT'
  state: NodeStateName
  address: string
  zone: string
  /** For shards. */
  memoryBytes: number
  usedBytes: number
  ranks: number
  /** (layer, expert) copies held. */
  shards: number
  provider: string
  /** Class of nodes that compute equal bits. */
  numerics: string
  rowsPerSecond: number
  dispatchP50Ms: number
  dispatchP99Ms: number
  version: string
  /** Why it is not READY; empty otherwise. */
  reason: string
}

export type ExpertLoadStatus = { layer: number; expert: number; rowsPerSecond: number; nodes: string[] }

export type ClusterStatus = {
  cluster: string
  modelDigest: string
  model: string
  epoch: number
  /** Coordinator id; empty while there is none. */
  leader: string
  nodes: NodeStatus[]
  minReplicas: number
  /** (layer, expert) pairs with no live copy, and with fewer than `minReplicas`. */
  uncovered: number
  underReplicated: number
  /** Mean load of the ranks divided by that of the busiest. */
  balancedness: number
  store: { kind: 'memory' | 'redis'; reachable: boolean; roundTripMs: number }
  /** Only where it was asked for. */
  experts: ExpertLoadStatus[]
  runningRequests: number
  queuedRequests: number
  tokensPerSecond: number
}

export type ClusterEvent = {
  timeUnixMs: number
  /** "node.joined", "node.lost", "epoch", "retry", … */
  kind: string
  /** Empty where it is about no node. */
  node: string
  /** One sentence for people. */
  text: string
  fields: Record<string, string>
}

/** `from` empty: a new copy; `to` empty: a copy dropped. */
export type PlacementMove = { layer: number; expert: number; from: string; to: string; why: string }

export type RebalanceReport = {
  moves: PlacementMove[]
  balancednessBefore: number
  balancednessAfter: number
  /** To be copied. */
  bytes: number
  /** The new one; 0 for a dry run. */
  epoch: number
}

export interface ClusterView {
  getStatus(options: { expertLoad: boolean }): Promise<ClusterStatus>
  /** Calls `listener` with the `last` past events, oldest first, then with each new one, until the result is called. */
  watchEvents(last: number, listener: (event: ClusterEvent) => void): () => void
  /** Settles when the node is empty; `moved` counts the shards copied elsewhere first. Errors: NODE_UNKNOWN, NOT_LEADER. */
  drain(node: string): Promise<{ moved: number }>
  /** Errors: NODE_UNKNOWN, NOT_LEADER. */
  undrain(node: string): Promise<void>
  /** Errors: NOT_LEADER. */
  rebalance(options: { dryRun: boolean }): Promise<RebalanceReport>
  /** Ends a request that runs on another coordinator; false where none knows it. */
  cancelElsewhere(requestId: string): Promise<boolean>
  /** Of this coordinator's own steps. */
  getProfile(): Profile
}
