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

type JournalStore = Pick<Store, 'journalPut' | 'journalAppend' | 'journalResume' | 'journalGet'>

export type StoreJournal = Journal & {
  /** Writes the entries of running requests again, for a store that came back empty. */
  restore(): Promise<void>
}

/** Kept in the cluster's store, so that any coordinator can resume. `owner`: this coordinator's id. */
export function createStoreJournal(store: JournalStore, owner: string, keepMs: number): StoreJournal {
  /** Entries of requests that run here; no more of them than requests in flight. */
  const running = new Map<string, JournalEntry>()
  return {
    put: async (id, request) => {
      running.set(id, { request, tokens: [], resumed: 0 })
      await store.journalPut(id, owner, request, keepMs)
    },
    append: async (id, candidate, offset, tokens) => {
      const entry = running.get(id)
      if (entry) appendTokens(entry.tokens, candidate, offset, tokens)
      await store.journalAppend(id, candidate, offset, tokens, keepMs)
    },
    countResume: async (id) => {
      await store.journalResume(id, owner, keepMs)
      const entry = await store.journalGet(id)
      if (entry) running.set(id, { request: entry.request, tokens: entry.tokens, resumed: entry.resumed })
    },
    // The store keeps an entry for `keepMs` after its last write, which was just now.
    finish: async (id) => {
      running.delete(id)
    },
    get: (id) => store.journalGet(id),
    restore: async () => {
      for (const [id, { request, tokens, resumed }] of [...running]) {
        await store.journalPut(id, owner, request, keepMs)
        for (let times = 0; times < resumed; times++) await store.journalResume(id, owner, keepMs)
        for (const [candidate, known] of tokens.entries()) {
          await store.journalAppend(id, candidate, 0, known.slice(), keepMs)
        }
      }
    },
  }
}

/** Repeating what is there changes nothing; beyond a gap nothing is added. */
function appendTokens(all: number[][], candidate: number, offset: number, tokens: readonly number[]): void {
  while (all.length <= candidate) all.push([])
  const known = all[candidate] ?? []
  if (offset <= known.length) known.push(...tokens.slice(known.length - offset))
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
      appendTokens(entry.tokens, candidate, offset, tokens)
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
