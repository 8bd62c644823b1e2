import type { Store } from '../cluster/store.ts'

/**
 * What another coordinator needs to go on with a request: the request with its seed, and the tokens so far. Tokens come
 * in batches, and what is lost with a coordinator is computed again, to the same bits; so nothing waits for the journal,
 * and a store that is away costs resumability for that time, never a stream.
 */
export type JournalEntry = {
  /** As it was put. */
  request: string
  /** Token ids per candidate, from the first on, without gaps; a candidate may have fewer than were sent. */
  tokens: number[][]
  /** Times that it was resumed. */
  resumed: number
}

/** Errors of all: STORE_UNREACHABLE. */
export interface Journal {
  /** Replaces an entry of that id. `request` is JSON of the owner's own making; at most some MiB. */
  put(id: string, request: string): Promise<void>
  /**
   * Tokens of a candidate from position `offset` on. Repeating what is there changes nothing; a batch beyond the end is
   * dropped, because an entry has no gaps.
   */
  append(id: string, candidate: number, offset: number, tokens: readonly number[]): Promise<void>
  /** Counts one more coordinator that takes the request up. */
  countResume(id: string): Promise<void>
  /** The stream ended: the entry is kept for some minutes, then forgotten. */
  finish(id: string): Promise<void>
  get(id: string): Promise<JournalEntry | null>
}

/** Kept in the cluster's store, so that any coordinator can resume. `owner`: this coordinator's id. */
export function createStoreJournal(store: Store, owner: string, keepMs: number): Journal {
  return {
    put: (id, request) => store.journalPut(id, owner, request, keepMs),
    append: (id, candidate, offset, tokens) => store.journalAppend(id, candidate, offset, tokens, keepMs),
    countResume: (id) => store.journalResume(id, owner, keepMs),
    // The store keeps an entry for `keepMs` after its last write, which was just now.
    finish: async () => {},
    get: (id) => store.journalGet(id),
  }
}

type Kept = JournalEntry & { expiresMs: number }

/** For one process: what resumes after a broken connection, not after the process. */
export function createMemoryJournal(options: { keepMs: number; requestsMax: number; nowMs: () => number }): Journal {
  /** In the order of their last use. */
  const entries = new Map<string, Kept>()

  function touch(id: string): Kept | null {
    const entry = entries.get(id)
    if (entry === undefined) return null
    entries.delete(id)
    if (entry.expiresMs <= options.nowMs()) return null
    entry.expiresMs = options.nowMs() + options.keepMs
    entries.set(id, entry)
    return entry
  }

  function dropOld(): void {
    for (const [id, { expiresMs }] of entries) {
      if (expiresMs > options.nowMs() && entries.size <= options.requestsMax) return
      entries.delete(id)
    }
  }

  return {
    put: async (id, request) => {
      entries.delete(id)
      entries.set(id, { request, tokens: [], resumed: 0, expiresMs: options.nowMs() + options.keepMs })
      dropOld()
    },
    append: async (id, candidate, offset, tokens) => {
      const entry = touch(id)
      if (entry === null) return
      while (entry.tokens.length <= candidate) entry.tokens.push([])
      const known = entry.tokens[candidate] ?? []
      if (offset <= known.length) known.push(...tokens.slice(known.length - offset))
    },
    countResume: async (id) => {
      const entry = touch(id)
      if (entry !== null) entry.resumed++
    },
    finish: async (id) => {
      touch(id)
    },
    get: async (id) => {
      const entry = touch(id)
      if (entry === null) return null
      return { request: entry.request, tokens: entry.tokens.map((tokens) => [...tokens]), resumed: entry.resumed }
    },
  }
}
