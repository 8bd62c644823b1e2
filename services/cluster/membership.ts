import { asMoeshError } from '../config/errors.ts'
import type { Clock } from './clock.ts'
import { emptyStatus, type NodeEntry, type NodeGauges, type NodeRecord, type NodeStatus, noGauges } from './node.ts'
import { type PlacementId, sameId } from './placement.ts'
import type { BeatReply, Leader, Store } from './store.ts'

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

/** A change of the own status is told, and a hint is followed, after so long: what comes together goes together. */
const gatherMs = 100
/** What was lost is shown to people for so long. */
const lostShownMs = 60_000
const beatMsMax = 1000

export function createMembership(options: MembershipOptions): Membership {
  return new BeatingMembership(options)
}

const emptyView: ClusterView = {
  nodes: new Map(),
  lost: new Map(),
  drained: new Set(),
  suspended: new Map(),
  leader: null,
  target: null,
  active: null,
  generation: 0,
  isReachable: false,
  isSettling: true,
}

class BeatingMembership implements Membership {
  readonly #options: MembershipOptions
  readonly #beatEveryMs: number
  readonly #listeners = new Set<(changes: readonly MembershipChange[], view: ClusterView) => void>()
  #status: NodeStatus
  #isTold = false
  #view: ClusterView = emptyView
  #cursor: BeatReply['cursor'] | null = null
  #timer: { cancel(): void } | null = null
  #beating: Promise<void> | null = null
  #isSoon = false
  #isRunning = false
  #unhint: () => void = () => {}

  constructor(options: MembershipOptions) {
    this.#options = options
    this.#status = options.status ?? emptyStatus
    this.#beatEveryMs = Math.min(beatMsMax, options.leaseMs / 3)
  }

  async start(): Promise<void> {
    this.#isRunning = true
    try {
      await this.#register()
    } catch (thrown) {
      if (asMoeshError(thrown).code !== 'STORE_UNREACHABLE') {
        this.#isRunning = false
        throw thrown
      }
    }
    this.#unhint = this.#options.store.onHint(() => this.#soon())
    await this.#beat()
  }

  view(): ClusterView {
    return this.#view
  }

  onChange(listener: (changes: readonly MembershipChange[], view: ClusterView) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  update(status: NodeStatus): void {
    this.#status = status
    this.#isTold = false
    this.#soon()
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    this.#unhint()
    this.#timer?.cancel()
    await this.#beating
    const { id, incarnation } = this.#options.self
    // A store that is away notices by the lease.
    await this.#options.store.deregister(id, incarnation).catch(() => {})
  }

  #soon(): void {
    if (!this.#isRunning || this.#isSoon) return
    this.#isSoon = true
    if (this.#beating === null) this.#schedule(gatherMs)
  }

  #schedule(delayMs: number): void {
    this.#timer?.cancel()
    if (!this.#isRunning) return
    this.#timer = this.#options.clock.after(delayMs, () => void this.#beat())
  }

  async #register(): Promise<void> {
    const { store, self, leaseMs } = this.#options
    await store.register({ record: self, status: this.#status }, leaseMs)
    this.#isTold = true
  }

  #beat(): Promise<void> {
    this.#beating ??= this.#beatOnce().finally(() => {
      this.#beating = null
      this.#schedule(this.#isSoon ? gatherMs : this.#beatEveryMs)
    })
    return this.#beating
  }

  async #beatOnce(): Promise<void> {
    const { store, self, leaseMs, gauges, random, clock } = this.#options
    const { id, incarnation } = self
    this.#isSoon = false
    const told = this.#status
    try {
      const reply = await store.beat({
        id,
        incarnation,
        leaseMs,
        status: this.#isTold ? null : told,
        gauges: gauges?.() ?? noGauges,
        cursor: this.#cursor,
      })
      this.#isTold ||= reply.isKnown && told === this.#status
      this.#cursor = reply.cursor
      if (!reply.isKnown && this.#isRunning) {
        // Everybody finds the store empty at once: not everybody should come back at once.
        await new Promise<void>((resolve) => clock.after((random() * leaseMs) / 6, resolve))
        await this.#register()
        this.#isSoon = true
      }
      this.#take(reply)
    } catch {
      if (this.#view.isReachable)
        this.#publish({ ...this.#view, isReachable: false, isSettling: true }, [
          { kind: 'reachable', isReachable: false },
        ])
    }
  }

  #take(reply: BeatReply): void {
    const before = this.#view
    const nowMs = this.#options.clock.nowMs()
    const changes: MembershipChange[] = []
    const isNew = reply.cursor.generation !== before.generation
    // A store that was emptied lists only who came back so far: who is missing is kept until it has met everybody.
    const isSettling = reply.graceMs > 0
    const nodes = new Map(reply.isFull && !isSettling ? [] : before.nodes)
    const lost = new Map([...before.lost].filter(([, { sinceMs }]) => nowMs - sinceMs < lostShownMs))
    for (const entry of reply.nodes) {
      const known = before.nodes.get(entry.record.id)
      nodes.set(entry.record.id, entry)
      lost.delete(entry.record.id)
      if (!known) changes.push({ kind: 'joined', id: entry.record.id })
      else if (known.record.incarnation !== entry.record.incarnation) {
        changes.push({ kind: 'replaced', id: entry.record.id })
      } else if (JSON.stringify(known.status) !== JSON.stringify(entry.status)) {
        changes.push({ kind: 'changed', id: entry.record.id })
      }
    }
    const left = new Map(reply.left.map(({ id, expired }) => [id, expired]))
    for (const [id, entry] of before.nodes) {
      const isGone = left.has(id) || !nodes.has(id)
      if (!isGone || reply.nodes.some(({ record }) => record.id === id)) continue
      nodes.delete(id)
      const expired = left.get(id) ?? true
      changes.push({ kind: expired ? 'lost' : 'left', id })
      if (expired) lost.set(id, { entry, sinceMs: nowMs, reason: 'its lease ended' })
    }
    if (!sameSet(reply.drained, before.drained) || !sameMap(reply.suspended, before.suspended)) {
      changes.push({ kind: 'flags' })
    }
    if (reply.leader?.id !== before.leader?.id || reply.leader?.token !== before.leader?.token) {
      changes.push({ kind: 'leader' })
    }
    if (!sameId(reply.target, before.target) || !sameId(reply.active, before.active))
      changes.push({ kind: 'placement' })
    if (isNew) changes.push({ kind: 'generation' })
    if (!before.isReachable) changes.push({ kind: 'reachable', isReachable: true })
    this.#publish(
      {
        nodes,
        lost,
        drained: new Set(reply.drained),
        suspended: reply.suspended,
        leader: reply.leader,
        target: reply.target,
        active: reply.active,
        generation: reply.cursor.generation,
        isReachable: true,
        isSettling,
      },
      changes,
    )
    // The full list again when the grace is over: only it tells who did not come back.
    if (isSettling) this.#cursor = null
  }

  #publish(view: ClusterView, changes: readonly MembershipChange[]): void {
    this.#view = view
    if (changes.length === 0) return
    for (const listener of [...this.#listeners]) listener(changes, view)
  }
}

function sameSet(a: readonly string[], b: ReadonlySet<string>): boolean {
  return a.length === b.size && a.every((item) => b.has(item))
}

function sameMap(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([key, value]) => b.get(key) === value)
}
