import { MoeshError } from '../config/errors.ts'
import type { NodeEntry, NodeGauges } from './node.ts'
import { type Placement, sameId } from './placement.ts'
import type { ClusterEvent, DrainedBy, JournalRecord, PublishedLoad, Store } from './store.ts'
import { eventsMax, flagsMax, journalMax, kvBlocksMax, loadsMax } from './store-limits.ts'

export type MemoryStoreOptions = {
  /** Decides leases; any origin, never goes back. */
  nowMs: () => number
}

type Kept = { entry: NodeEntry; gauges: NodeGauges | null; leaseEndMs: number; version: number }

/** The embedded form's store: the same rules as in the scripts under `lua/`, for one process. */
export function createMemoryStore({ nowMs }: MemoryStoreOptions): Store {
  const bornMs = nowMs()
  // Positive, because 0 means "never seen".
  const generation = Math.floor(bornMs) + 1
  let version = 1
  let touchedMs: number | null = null
  let graceEndMs = 0
  /** Readers before it get everything. */
  let floor = 0
  const nodes = new Map<string, Kept>()
  const gone = new Map<string, { version: number; expired: boolean }>()
  const drained = new Map<string, DrainedBy>()
  const suspended = new Map<string, string>()
  let suspensions = 0
  let lead: { id: string; incarnation: string; token: number; endMs: number } | null = null
  let target: Placement | null = null
  let active: Placement | null = null
  const loads = new Map<string, { load: PublishedLoad; endMs: number }>()
  const journal = new Map<string, JournalRecord & { endMs: number }>()
  const kv = new Map<string, Map<string, number>>()
  const events: ClusterEvent[] = []
  let eventsBefore = 0
  const listeners = new Set<() => void>()
  let isHinting = false

  function hint(): void {
    if (isHinting) return
    isHinting = true
    queueMicrotask(() => {
      isHinting = false
      for (const listener of listeners) listener()
    })
  }

  function enter(leaseMs: number): number {
    const now = nowMs()
    if (touchedMs === null || now - touchedMs > 0.6 * leaseMs) graceEndMs = now + leaseMs
    touchedMs = now
    return now
  }

  function remove(id: string, expired: boolean): void {
    nodes.delete(id)
    if (gone.size >= 1000) {
      gone.clear()
      floor = version
    }
    gone.set(id, { version: ++version, expired })
    hint()
  }

  function assertLeads(token: number): void {
    if (lead === null || lead.token !== token || lead.endMs <= nowMs()) {
      throw new MoeshError('NOT_LEADER', 'another coordinator leads by now')
    }
  }

  function setFlag(size: number, has: boolean): void {
    if (size < flagsMax || has) return
    throw new MoeshError('INVALID_ARGUMENT', 'too many nodes are drained or suspended', 'undrain some')
  }

  function journalEntry(id: string, keepMs: number): (JournalRecord & { endMs: number }) | null {
    const entry = journal.get(id)
    if (entry === undefined || entry.endMs <= nowMs()) return null
    entry.endMs = nowMs() + keepMs
    return entry
  }

  return {
    kind: 'memory',

    async register(node, leaseMs) {
      const now = enter(leaseMs)
      const { id, incarnation } = node.record
      const known = nodes.get(id)
      if (known && known.entry.record.incarnation !== incarnation && known.leaseEndMs > now) {
        throw new MoeshError('NODE_ID_TAKEN', `a node with the id "${id}" is alive`, 'give this one another --id')
      }
      gone.delete(id)
      nodes.set(id, { entry: structuredClone(node), gauges: null, leaseEndMs: now + leaseMs, version: ++version })
      hint()
    },

    async beat({ id, incarnation, leaseMs, status, gauges, cursor }) {
      const now = enter(leaseMs)
      const known = nodes.get(id)
      const isKnown = known?.entry.record.incarnation === incarnation
      if (known && isKnown) {
        known.leaseEndMs = now + leaseMs
        known.gauges = { ...gauges }
        if (status !== null && JSON.stringify(status) !== JSON.stringify(known.entry.status)) {
          known.entry = { record: known.entry.record, status: structuredClone(status) }
          known.version = ++version
          hint()
        }
      }
      if (now >= graceEndMs) {
        for (const [silent, { leaseEndMs }] of [...nodes]) if (leaseEndMs <= now) remove(silent, true)
      }
      const isFull = cursor?.generation !== generation || cursor.version < floor
      const since = isFull ? 0 : cursor.version
      return {
        isKnown,
        isFull,
        cursor: { generation, version },
        nodes: [...nodes.values()].filter((node) => node.version > since).map(({ entry }) => structuredClone(entry)),
        left: isFull
          ? []
          : [...gone]
              .filter(([, one]) => one.version > since)
              .map(([goneId, { expired }]) => ({ id: goneId, expired })),
        graceMs: Math.max(0, graceEndMs - now),
        drained: new Map(drained),
        suspended: new Map(suspended),
        leader:
          lead !== null && lead.endMs > now
            ? { id: lead.id, incarnation: lead.incarnation, token: lead.token, remainingMs: lead.endMs - now }
            : null,
        target: target && { epoch: target.epoch, token: target.token },
        active: active && { epoch: active.epoch, token: active.token },
        suspensions,
      }
    },

    async deregister(id, incarnation) {
      if (nodes.get(id)?.entry.record.incarnation === incarnation) remove(id, false)
    },

    async gauges() {
      const result = new Map<string, NodeGauges>()
      for (const [id, { gauges }] of nodes) if (gauges) result.set(id, { ...gauges })
      return result
    },

    async lead(id, incarnation, leaseMs) {
      const now = nowMs()
      const isOwn = lead?.id === id && lead.incarnation === incarnation
      const isFree = lead === null || lead.endMs <= now
      if (lead === null || isFree) {
        lead = { id, incarnation, token: Math.max(Math.floor(now) + 1, (lead?.token ?? 0) + 1), endMs: now + leaseMs }
        hint()
      } else if (isOwn) {
        lead.endMs = now + leaseMs
      }
      return { id: lead.id, incarnation: lead.incarnation, token: lead.token, remainingMs: lead.endMs - now }
    },

    async resign(id, incarnation) {
      if (lead?.id !== id || lead.incarnation !== incarnation) return
      lead.endMs = -Infinity
      hint()
    },

    async writeTarget(placement) {
      assertLeads(placement.token)
      target = structuredClone(placement)
      hint()
    },

    async activate(id, token) {
      assertLeads(token)
      if (target === null || !sameId(id, target)) {
        throw new MoeshError('NOT_LEADER', `placement ${id.epoch} is not the target any more`)
      }
      active = target
      hint()
    },

    async readPlacement(known) {
      return {
        target: sameId(known.target, target) ? null : structuredClone(target),
        active: sameId(known.active, active) ? null : structuredClone(active),
      }
    },

    async setDrained(id, by) {
      if (by !== null) {
        setFlag(drained.size, drained.has(id))
        drained.set(id, by)
      } else drained.delete(id)
      hint()
    },

    async setSuspended(id, reason) {
      if (reason !== null) {
        setFlag(suspended.size, suspended.has(id))
        if (!suspended.has(id)) suspensions += 1
        suspended.set(id, reason)
      } else if (suspended.delete(id)) suspensions += 1
      hint()
    },

    async publishLoad(coordinator, load, keepMs) {
      loads.delete(coordinator)
      loads.set(coordinator, { load: structuredClone(load), endMs: nowMs() + keepMs })
      dropOldest(loads, loadsMax)
    },

    async loads() {
      for (const [id, { endMs }] of [...loads]) if (endMs <= nowMs()) loads.delete(id)
      return new Map([...loads].map(([id, { load }]) => [id, structuredClone(load)]))
    },

    async journalPut(id, owner, request, keepMs) {
      journal.delete(id)
      for (const [old, { endMs }] of journal) {
        if (endMs > nowMs()) break
        journal.delete(old)
      }
      journal.set(id, { request, owner, resumed: 0, tokens: [], endMs: nowMs() + keepMs })
      dropOldest(journal, journalMax)
    },

    async journalAppend(id, candidate, offset, tokens, keepMs) {
      const entry = journalEntry(id, keepMs)
      if (entry === null || offset > (entry.tokens[candidate]?.length ?? 0)) return
      while (entry.tokens.length <= candidate) entry.tokens.push([])
      entry.tokens[candidate]?.splice(offset, tokens.length, ...tokens)
    },

    async journalResume(id, owner, keepMs) {
      const entry = journalEntry(id, keepMs)
      if (entry === null) return
      entry.owner = owner
      entry.resumed += 1
    },

    async journalGet(id) {
      const entry = journal.get(id)
      if (entry === undefined || entry.endMs <= nowMs()) return null
      const { request, owner, resumed, tokens } = entry
      return { request, owner, resumed, tokens: tokens.map((one) => [...one]) }
    },

    async kvAnnounce(coordinator, blocks, keepMs) {
      if (blocks.length === 0) return
      const own = kv.get(coordinator) ?? new Map<string, number>()
      kv.set(coordinator, own)
      for (const block of blocks) {
        own.delete(block)
        own.set(block, nowMs() + keepMs)
      }
      for (const [block, endMs] of own) if (endMs <= nowMs()) own.delete(block)
      dropOldest(own, kvBlocksMax)
    },

    async kvForget(coordinator, blocks) {
      for (const block of blocks) kv.get(coordinator)?.delete(block)
    },

    async kvFind(coordinators, blocks) {
      const counts = coordinators.map((id) => {
        const own = kv.get(id)
        const missing = blocks.findIndex((block) => (own?.get(block) ?? -Infinity) <= nowMs())
        return [id, missing < 0 ? blocks.length : missing] as const
      })
      return new Map(counts)
    },

    async appendEvents(added) {
      events.push(...structuredClone(added as ClusterEvent[]))
      const surplus = Math.max(0, events.length - eventsMax)
      events.splice(0, surplus)
      eventsBefore += surplus
      if (added.length > 0) hint()
    },

    async readEvents(cursor, max) {
      const end = eventsBefore + events.length
      if (cursor === null) return { events: max === 0 ? [] : structuredClone(events.slice(-max)), cursor: String(end) }
      const from = Math.max(Number(cursor), eventsBefore)
      const found = events.slice(from - eventsBefore, from - eventsBefore + max)
      return { events: structuredClone(found), cursor: String(from + found.length) }
    },

    onHint(listener) {
      listeners.add(listener)
      return () => {
        listeners.delete(listener)
      }
    },

    health: () => ({ reachable: true, roundTripMs: 0 }),

    async close() {
      listeners.clear()
    },
  }
}

/** Maps keep the order of insertion. */
function dropOldest<K, V>(map: Map<K, V>, max: number): void {
  for (const id of map.keys()) {
    if (map.size <= max) return
    map.delete(id)
  }
}
