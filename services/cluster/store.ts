import { z } from 'zod'
import type { NodeEntry, NodeGauges, NodeStatus } from './node.ts'
import type { Placement, PlacementId } from './placement.ts'

/**
 * The cluster's shared facts: small, short-lived, never weights, hidden states or KV. Two implementations (memory-store,
 * redis-store) pass one contract suite.
 *
 * All times that decide something are the store's own clock. A node is alive while its lease runs; but a store that
 * nobody reached for half a lease was itself away, and one that was born less than a lease ago has not met anybody:
 * then silence is no death, and until `graceMs` is over nobody expires.
 *
 * Errors of every method: STORE_UNREACHABLE. After it the call may or may not have had its effect; repeating is safe.
 */
export interface Store {
  readonly kind: 'memory' | 'redis'

  /** Takes or takes back a node id. NODE_ID_TAKEN while another incarnation of it is alive. */
  register(node: NodeEntry, leaseMs: number): Promise<void>
  /** Renews the lease, tells what changed, hears what changed: the only call that a node makes regularly. */
  beat(beat: Beat): Promise<BeatReply>
  /** Leaves at once instead of by silence. Another incarnation's record stays. */
  deregister(id: string, incarnation: string): Promise<void>
  gauges(): Promise<Map<string, NodeGauges>>

  /**
   * Takes or renews the leadership. The reply names whoever leads now; the token grows with each change of leader and
   * is never reused, not even by a store that came back empty.
   */
  lead(id: string, incarnation: string, leaseMs: number): Promise<Leader>
  /** Ends the own leadership at once; another's stays. */
  resign(id: string, incarnation: string): Promise<void>

  /** Sets what nodes shall load. Fenced: NOT_LEADER unless `placement.token` is the token of the present leader. */
  writeTarget(placement: Placement): Promise<void>
  /**
   * Makes the target the active placement, from which weights are taken and after which leftovers unload. Fenced;
   * NOT_LEADER too where the target is another by now.
   */
  activate(id: PlacementId, token: number): Promise<void>
  /** Target and active, where they differ from `known`; null where they don't or there is none. */
  readPlacement(known: KnownPlacement): Promise<{ target: Placement | null; active: Placement | null }>

  /** Keeps a node empty on somebody's behalf, or takes it back (null). Needs no living node of that name. */
  setDrained(id: string, by: DrainedBy | null): Promise<void>
  /** Takes a node out because its rows were wrong (`reason`), or back (null). */
  setSuspended(id: string, reason: string | null): Promise<void>

  /** Replaces what the coordinator said before; forgotten after `keepMs`. */
  publishLoad(coordinator: string, load: PublishedLoad, keepMs: number): Promise<void>
  loads(): Promise<Map<string, PublishedLoad>>

  /** `request` is JSON of the caller's; replaces an entry of that id. Kept for `keepMs` after the last write. */
  journalPut(id: string, owner: string, request: string, keepMs: number): Promise<void>
  /** Repeating is harmless; a batch that would leave a gap, or of an unknown id, is dropped. */
  journalAppend(id: string, candidate: number, offset: number, tokens: readonly number[], keepMs: number): Promise<void>
  /** One more coordinator takes the request up, and owns it from now on. */
  journalResume(id: string, owner: string, keepMs: number): Promise<void>
  journalGet(id: string): Promise<JournalRecord | null>

  /** The coordinator caches these prefix blocks (chained hashes). Bounded: the oldest are forgotten. */
  kvAnnounce(coordinator: string, blocks: readonly string[], keepMs: number): Promise<void>
  kvForget(coordinator: string, blocks: readonly string[]): Promise<void>
  /** For each coordinator, how many of `blocks`, from the first on without a gap, it caches. */
  kvFind(coordinators: readonly string[], blocks: readonly string[]): Promise<Map<string, number>>

  /** Bounded: the oldest are forgotten. */
  appendEvents(events: readonly ClusterEvent[]): Promise<void>
  /** Events after `cursor` (null: the last `max` ones), oldest first, at most `max`. */
  readEvents(cursor: string | null, max: number): Promise<{ events: ClusterEvent[]; cursor: string | null }>

  /** Called when something changed, soon and mostly; a hint that nothing may rely on. */
  onHint(listener: () => void): () => void
  /** Of the last calls. */
  health(): { reachable: boolean; roundTripMs: number }
  close(): Promise<void>
}

/** An operator says when a drained node comes back; what was drained to scale down is about to go. */
export type DrainedBy = 'operator' | 'scaling'

export type Beat = {
  id: string
  incarnation: string
  leaseMs: number
  /** null: as before. */
  status: NodeStatus | null
  gauges: NodeGauges
  /** From the reply before; null: everything. */
  cursor: Cursor | null
}

/** How much of the world a reader has seen. */
export type Cursor = { generation: number; version: number }

export type BeatReply = {
  /** False: the store does not know this node (it expired, or the store is a new one): it must register again. */
  isKnown: boolean
  /** `nodes` are all nodes, not only those that changed. */
  isFull: boolean
  cursor: Cursor
  nodes: NodeEntry[]
  /** Ids that are gone since the cursor; `expired`: by silence. */
  left: { id: string; expired: boolean }[]
  /** While above 0, the store has not heard of everybody yet: who is missing may be alive. */
  graceMs: number
  drained: Map<string, DrainedBy>
  suspended: Map<string, string>
  /** How often a node was suspended or taken back: also what came and went between two replies. */
  suspensions: number
  leader: Leader | null
  target: PlacementId | null
  active: PlacementId | null
}

export type Leader = { id: string; incarnation: string; token: number; remainingMs: number }

export type KnownPlacement = { target: PlacementId | null; active: PlacementId | null }

export const publishedLoadSchema = z.object({
  /** Layer index and its experts' rows per second. */
  layers: z
    .array(
      z.object({ layer: z.number().int().nonnegative(), rowsPerSecond: z.array(z.number().nonnegative()).max(65_536) }),
    )
    .max(4096),
})
export type PublishedLoad = z.infer<typeof publishedLoadSchema>

export type JournalRecord = {
  request: string
  owner: string
  resumed: number
  /** Per candidate, from the first token on, without gaps. */
  tokens: number[][]
}

export const clusterEventSchema = z.object({
  timeUnixMs: z.number().int().nonnegative(),
  /** "node.joined", "node.lost", "epoch", … */
  kind: z.string().max(64),
  /** Empty where it is about no node. */
  node: z.string().max(128),
  /** One sentence for people. */
  text: z.string().max(4096),
  fields: z.record(z.string(), z.string()),
})
export type ClusterEvent = z.infer<typeof clusterEventSchema>
