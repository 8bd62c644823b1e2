import { asMoeshError, type MoeshError } from '../config/errors.ts'
import type { Clock } from './clock.ts'
import { emptyStatus, type NodeGauges, type NodeRecord, type NodeStatus, noGauges } from './node.ts'
import type { Cursor, Store } from './store.ts'
import { applyOutage, applyReply, type ClusterView, emptyView, type MembershipChange } from './view.ts'

export type MembershipOptions = {
  store: Store
  self: NodeRecord
  /** At the start; later ones by `update`. */
  status?: NodeStatus
  clock: Clock
  leaseMs: number
  /** 0 ≤ x < 1: spreads registrations after an outage. */
  random: () => number
  /** Called before each beat. */
  gauges?: () => NodeGauges
  /** Somebody else took the id while the store was away; it is tried again with each beat. */
  onRefused?: (error: MoeshError) => void
}

export type MembershipListener = (changes: readonly MembershipChange[], view: ClusterView) => void

export interface Membership {
  /** Registers and starts to beat. Rejects with NODE_ID_TAKEN; where the store is away it goes on trying and resolves. */
  start(): Promise<void>
  view(): ClusterView
  /** Calls after each view that differs, with all that changed, until the result is called. */
  onChange(listener: MembershipListener): () => void
  /** Own status; told to the store soon (within a second), and again after an outage. */
  update(status: NodeStatus): void
  /** Ends the beats and leaves. */
  stop(): Promise<void>
}

/**
 * A node's place in the cluster. One call per beat, a third of the lease apart, renews its lease, tells its status and
 * brings what changed; hints make that call come sooner, but not more often than the cluster's size allows.
 */
export function createMembership(options: MembershipOptions): Membership {
  const { store, self, clock, leaseMs, random } = options
  const listeners = new Set<MembershipListener>()
  let view = emptyView
  let status = options.status ?? emptyStatus
  let isStatusTold = false
  let cursor: Cursor | null = null
  let isRegistered = false
  let isStopped = false
  let lastBeatMs = -Infinity
  let timer: { cancel(): void; atMs: number } | null = null
  let underWay: Promise<void> | null = null
  /** Asked to hurry during the beat that is under way. */
  let isHurried = false
  let stopHints = () => {}

  function schedule(atMs: number): void {
    if (isStopped || (timer && timer.atMs <= atMs)) return
    timer?.cancel()
    const handle = clock.after(Math.max(0, atMs - clock.nowMs()), () => {
      timer = null
      void beatAndSchedule()
    })
    timer = { cancel: () => handle.cancel(), atMs }
  }

  /** As soon as the cluster's size allows: with many nodes, hints are many. */
  function hurry(): void {
    // Whoever has to register waits for its turn: each registration causes a hint to all others.
    if (!isRegistered) return
    // The store may have answered the beat that is under way before what this is about.
    if (underWay !== null) isHurried = true
    else schedule(Math.max(clock.nowMs(), lastBeatMs + beatGapMs(view.nodes.size)))
  }

  function beatAndSchedule(): Promise<void> {
    isHurried = false
    underWay = beat().then((nextMs) => {
      underWay = null
      const hasNews = isRegistered && view.isReachable && (isHurried || !isStatusTold)
      schedule(lastBeatMs + (hasNews ? Math.min(nextMs, beatGapMs(view.nodes.size)) : nextMs))
    })
    return underWay
  }

  /** Resolves with the time from its begin until the next one, where nobody hurries. */
  async function beat(): Promise<number> {
    lastBeatMs = clock.nowMs()
    let nextMs = leaseMs / 3
    try {
      if (!isRegistered) await register()
      const told = isStatusTold ? null : status
      const reply = await store.beat({
        id: self.id,
        incarnation: self.incarnation,
        leaseMs,
        status: told,
        gauges: options.gauges?.() ?? noGauges,
        cursor,
      })
      if (told === status) isStatusTold = reply.isKnown
      if (!reply.isKnown) {
        isRegistered = false
        // All nodes learn at the same time that a store is new; they do not come back at the same time.
        nextMs = random() * (leaseMs / 3)
      }
      cursor = reply.cursor
      publish(applyReply(view, reply, clock.nowMs()))
    } catch (thrown) {
      const error = asMoeshError(thrown)
      if (error.code === 'NODE_ID_TAKEN') options.onRefused?.(error)
      else publish(applyOutage(view))
      nextMs = (leaseMs / 3) * (0.5 + random() / 2)
    }
    return nextMs
  }

  async function register(): Promise<void> {
    const told = status
    await store.register({ record: self, status: told }, leaseMs)
    isRegistered = true
    isStatusTold = told === status
  }

  function publish(next: { view: ClusterView; changes: MembershipChange[] }): void {
    view = next.view
    if (next.changes.length === 0) return
    for (const listener of listeners) listener(next.changes, view)
  }

  /** A process that was killed and came back finds its own old lease running, so it is patient for that long. */
  async function registerFirst(): Promise<void> {
    const giveUpMs = clock.nowMs() + 1.5 * leaseMs
    for (;;) {
      try {
        return await register()
      } catch (thrown) {
        const error = asMoeshError(thrown)
        if (error.code !== 'NODE_ID_TAKEN') return
        if (clock.nowMs() >= giveUpMs) throw error
        await new Promise<void>((resolve) => void clock.after(leaseMs / 6, resolve))
      }
    }
  }

  return {
    async start() {
      await registerFirst()
      if (isStopped) return
      stopHints = store.onHint(hurry)
      await beatAndSchedule()
    },
    view: () => view,
    onChange(listener) {
      listeners.add(listener)
      return () => {
        listeners.delete(listener)
      }
    },
    update(next) {
      if (JSON.stringify(next) === JSON.stringify(status)) return
      status = next
      isStatusTold = false
      if (isRegistered) hurry()
    },
    async stop() {
      isStopped = true
      stopHints()
      timer?.cancel()
      await underWay
      listeners.clear()
      // A store that is away finds out by silence.
      await store.deregister(self.id, self.incarnation).catch(asMoeshError)
    },
  }
}

/** Shortest time between two beats: what 100 nodes hear of each other stays below 200 beats a second. */
function beatGapMs(nodes: number): number {
  return Math.min(1000, Math.max(250, 5 * nodes))
}
