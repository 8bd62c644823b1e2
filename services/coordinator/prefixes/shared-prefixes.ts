import type { Store } from '../../cluster/store.ts'
import { extendNames, findableBlocks } from '../block-names.ts'
import type { KvExchange } from '../kv-exchange.ts'
import type { EngineRequest } from '../request.ts'
import { kvBlockTokens } from '../team/kv-cache.ts'
import type { KvPeer } from './kv-peer.ts'

export type Coordinator = { id: string; address: string }

export type SharedPrefixesOptions = {
  self: string
  kv: KvExchange
  store: Pick<Store, 'kvAnnounce' | 'kvForget' | 'kvFind' | 'health'>
  /** Those that compute the same bits from the same pack. */
  coordinators: () => readonly Coordinator[]
  /** All that bits depend on but tokens, at present. */
  era: () => string
  connect: (coordinator: Coordinator) => KvPeer
  /** What reading a token of a prompt takes here. */
  msPerToken: () => number
  nowMs: () => number
  /** Why something was not taken over: nothing is lost by it. */
  onFailure: (coordinator: string, error: unknown) => void
}

/** Fewer blocks than this are not worth a round trip. */
const worthBlocks = 4
/** Of the time that computing would take; what has not come by then is computed. */
const worthShare = 0.5
/** Names of a prompt that the store is asked for, and that it is told at once. */
const namesMax = 4096
/** In the store a name has half its figures: what is fetched is asked for by the whole. */
const shortChars = 32
const keepMs = 600_000

const short = (name: string) => name.slice(0, shortChars)

/**
 * Coordinators tell the store which blocks of the KV cache they hold, and take over from each other what would take longer to
 * compute. Whatever goes wrong with that, the prompt is computed.
 */
export class SharedPrefixes {
  readonly #options: SharedPrefixesOptions
  readonly #peers = new Map<string, { address: string; peer: KvPeer }>()
  /** By the last name: requests that begin alike wait for the same blocks. */
  readonly #running = new Map<string, Promise<void>>()
  /** When everything was announced last. */
  #announcedMs = Number.NEGATIVE_INFINITY
  /** Tokens that were not computed here. */
  fetchedTokens = 0

  constructor(options: SharedPrefixesOptions) {
    this.#options = options
  }

  /** Takes over what others have of a prompt. Null: there is nothing to wait for. Never rejects. */
  prepare(request: EngineRequest, signal: AbortSignal): Promise<void> | null {
    const { kv, store, coordinators } = this.#options
    const { promptIds, cacheSalt, output } = request
    // What is asked of each token of the prompt has to be computed.
    if (output.promptLogprobs !== null || output.promptExpertTrace) return null
    const count = Math.min(namesMax, findableBlocks(promptIds.length))
    if (count < worthBlocks || coordinators().length === 0 || !store.health().reachable) return null
    const names: string[] = []
    extendNames(names, promptIds, cacheSalt, count)
    const missing = names.slice(kv.held(names))
    if (missing.length < worthBlocks) return null
    const budgetMs = worthShare * this.#options.msPerToken() * missing.length * kvBlockTokens
    const ends = AbortSignal.any([signal, AbortSignal.timeout(Math.ceil(budgetMs))])
    const last = names.at(-1) ?? ''
    let work = this.#running.get(last)
    if (work === undefined) {
      work = this.#fetch(names, missing, ends).finally(() => this.#running.delete(last))
      this.#running.set(last, work)
    }
    // A store that hangs must not hold up the request.
    return Promise.race([work, aborted(ends)])
  }

  /** Tells the store what can be found here by now; called again and again. Errors: those of the store. */
  async announce(): Promise<void> {
    const { self, kv, store, nowMs, coordinators } = this.#options
    const changes = kv.changes()
    if (coordinators().length === 0) {
      // Whoever comes hears of everything.
      this.#announcedMs = Number.NEGATIVE_INFINITY
      return
    }
    for (const [id, { address, peer }] of this.#peers) {
      if (coordinators().some((other) => other.id === id && other.address === address)) continue
      peer.close()
      this.#peers.delete(id)
    }
    const startedMs = nowMs()
    const isDue = startedMs - this.#announcedMs > keepMs / 2
    const come = isDue ? kv.names() : [...changes].filter(([, isHeld]) => isHeld).map(([name]) => name)
    const gone = [...changes].filter(([, isHeld]) => !isHeld).map(([name]) => name)
    // Should one of the calls fail, the next time tells all.
    const before = this.#announcedMs
    this.#announcedMs = Number.NEGATIVE_INFINITY
    for (const part of parts(gone)) await store.kvForget(self, part.map(short))
    for (const part of parts(come)) await store.kvAnnounce(self, part.map(short), keepMs)
    this.#announcedMs = isDue ? startedMs : before
  }

  close(): void {
    for (const { peer } of this.#peers.values()) peer.close()
    this.#peers.clear()
  }

  async #fetch(names: readonly string[], missing: readonly string[], signal: AbortSignal): Promise<void> {
    const { kv, store, era, coordinators, onFailure } = this.#options
    const eraName = era()
    const eraNumber = kv.era()
    let from = ''
    try {
      const found = await store.kvFind(
        coordinators().map(({ id }) => id),
        names.map(short),
      )
      const held = names.length - missing.length
      const best = [...found].sort(([, a], [, b]) => b - a)[0]
      const source = coordinators().find(({ id }) => id === best?.[0])
      const wanted = missing.slice(0, Math.max(0, Math.min(kv.free(), (best?.[1] ?? 0) - held)))
      if (source === undefined || wanted.length < worthBlocks || signal.aborted) return
      from = source.id
      let next = 0
      for await (const block of this.#peer(source).read({ era: eraName, names: wanted }, kv.blockBytes, signal)) {
        const name = wanted[next++]
        if (name === undefined || era() !== eraName || !(await kv.write(name, block, eraNumber))) return
        this.fetchedTokens += kvBlockTokens
        if (signal.aborted) return
      }
    } catch (thrown) {
      if (!signal.aborted) onFailure(from, thrown)
    } finally {
      kv.refresh(names)
    }
  }

  #peer(coordinator: Coordinator): KvPeer {
    const known = this.#peers.get(coordinator.id)
    if (known?.address === coordinator.address) return known.peer
    known?.peer.close()
    const peer = this.#options.connect(coordinator)
    this.#peers.set(coordinator.id, { address: coordinator.address, peer })
    return peer
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

function parts(names: readonly string[]): string[][] {
  const count = Math.ceil(names.length / namesMax)
  return Array.from({ length: count }, (_, i) => names.slice(i * namesMax, (i + 1) * namesMax))
}
