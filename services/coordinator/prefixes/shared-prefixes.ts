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
/** The store answers within so long, or is not waited for. */
const findMs = 250
/** Nothing came for so long: whoever has the blocks is busy, or gone. */
const stallMs = 1000
/** Blocks that came and are not written yet. */
const writingMax = 8
/** Names of a prompt that the store is asked for, and that it is told at once. */
const namesMax = 4096
/** In the store a name has half its figures: what is fetched is asked for by the whole. */
const shortChars = 32
const keepMs = 600_000
/** More than this has gathered while the store was away. */
const untoldMax = 65_536

const short = (name: string) => name.slice(0, shortChars)

/**
 * Coordinators tell the store which blocks of the KV cache they hold, and take over from each other what would take longer to
 * compute. Whatever goes wrong with that, the prompt is computed.
 */
export class SharedPrefixes {
  readonly #options: SharedPrefixesOptions
  readonly #peers = new Map<string, { address: string; peer: KvPeer }>()
  /** By the first name that is missing: requests that begin alike wait for the same blocks. */
  readonly #running = new Map<string, Promise<void>>()
  /** When everything was announced last. */
  #announcedMs = Number.NEGATIVE_INFINITY
  /** What the store is still to be told: names that can be found, or not any more. */
  readonly #untold = new Map<string, boolean>()
  #isAnnouncing = false
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
    const [first = ''] = missing
    let work = this.#running.get(first)
    if (work === undefined) {
      work = this.#fetch(names, missing).finally(() => this.#running.delete(first))
      this.#running.set(first, work)
    }
    return Promise.race([work, aborted(signal)])
  }

  /** Tells the store what can be found here by now; called again and again. Errors: those of the store. */
  async announce(): Promise<void> {
    const { self, kv, store, nowMs, coordinators } = this.#options
    for (const [name, isHeld] of kv.changes()) this.#untold.set(name, isHeld)
    if (this.#untold.size > untoldMax) this.#forgetUntold()
    for (const [id, { address, peer }] of this.#peers) {
      if (coordinators().some((other) => other.id === id && other.address === address)) continue
      peer.close()
      this.#peers.delete(id)
    }
    if (coordinators().length === 0) {
      // Whoever comes hears of everything.
      this.#forgetUntold()
      return
    }
    if (this.#isAnnouncing) return
    this.#isAnnouncing = true
    try {
      if (nowMs() - this.#announcedMs > keepMs / 2) {
        for (const name of kv.names()) this.#untold.set(name, true)
        this.#announcedMs = nowMs()
      }
      // Names stay untold until the store has answered.
      for (const part of parts(this.#untold, false)) await this.#tell(part, () => store.kvForget(self, part.map(short)))
      for (const part of parts(this.#untold, true)) {
        await this.#tell(part, () => store.kvAnnounce(self, part.map(short), keepMs))
      }
    } finally {
      this.#isAnnouncing = false
    }
  }

  /** The next time all that is held is told; what is not any more expires. */
  #forgetUntold(): void {
    this.#untold.clear()
    this.#announcedMs = Number.NEGATIVE_INFINITY
  }

  async #tell(names: readonly string[], call: () => Promise<void>): Promise<void> {
    const told = names.map((name) => [name, this.#untold.get(name)] as const)
    await call()
    // What has changed meanwhile is told the next time.
    for (const [name, isHeld] of told) if (this.#untold.get(name) === isHeld) this.#untold.delete(name)
  }

  close(): void {
    for (const { peer } of this.#peers.values()) peer.close()
    this.#peers.clear()
  }

  async #fetch(names: readonly string[], missing: readonly string[]): Promise<void> {
    const { kv, era, onFailure } = this.#options
    const held = names.length - missing.length
    const present = { name: era(), number: kv.era() }
    let from = ''
    try {
      const found = await this.#find(names)
      if (found === null) return
      from = found.coordinator.id
      // What is here already must not make room for what follows it.
      kv.refresh(names)
      const wanted = missing.slice(0, Math.max(0, Math.min(kv.free() - held, found.count - held)))
      if (wanted.length < worthBlocks) return
      await this.#read(found.coordinator, wanted, present)
    } catch (thrown) {
      onFailure(from, thrown)
    } finally {
      kv.refresh(names)
    }
  }

  /** Who has most of them. */
  async #find(names: readonly string[]): Promise<{ coordinator: Coordinator; count: number } | null> {
    const { store, coordinators } = this.#options
    const ids = coordinators().map(({ id }) => id)
    const found = await Promise.race([store.kvFind(ids, names.map(short)), aborted(AbortSignal.timeout(findMs))])
    const [best] = [...(found ?? [])].sort(([, a], [, b]) => b - a)
    const coordinator = coordinators().find(({ id }) => id === best?.[0])
    return best === undefined || coordinator === undefined ? null : { coordinator, count: best[1] }
  }

  /** Blocks are written while others come; all are in when it ends. */
  async #read(from: Coordinator, names: readonly string[], present: { name: string; number: number }): Promise<void> {
    const { kv, era, msPerToken } = this.#options
    const ends = new AbortController()
    const end = () => ends.abort()
    const budget = setTimeout(end, worthShare * msPerToken() * names.length * kvBlockTokens)
    const stall = setTimeout(end, stallMs)
    const writing: Promise<boolean>[] = []
    try {
      let next = 0
      for await (const block of this.#peer(from).read({ era: present.name, names }, kv.blockBytes, ends.signal)) {
        stall.refresh()
        const name = names[next++]
        if (name === undefined || era() !== present.name) return
        const written = this.#write(name, block, present.number)
        // It is looked at later.
        written.catch(() => {})
        writing.push(written)
        if (writing.length >= writingMax && !(await writing.shift())) return
        if (ends.signal.aborted) return
      }
    } catch (thrown) {
      if (!ends.signal.aborted) throw thrown
    } finally {
      clearTimeout(budget)
      clearTimeout(stall)
      await Promise.all(writing)
    }
  }

  async #write(name: string, block: Uint8Array, era: number): Promise<boolean> {
    const { kv } = this.#options
    const isNew = kv.held([name]) === 0
    const isHere = await kv.write(name, block, era)
    if (isNew && isHere) this.fetchedTokens += kvBlockTokens
    return isHere
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

/** The names that are (not) held, as many at a time as the store is told. */
function parts(untold: ReadonlyMap<string, boolean>, isHeld: boolean): string[][] {
  const names = [...untold].filter(([, held]) => held === isHeld).map(([name]) => name)
  const count = Math.ceil(names.length / namesMax)
  return Array.from({ length: count }, (_, i) => names.slice(i * namesMax, (i + 1) * namesMax))
}
