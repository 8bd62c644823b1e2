import { isDeepStrictEqual } from 'node:util'
import { assignment } from '../cluster/assignment.ts'
import type { Clock } from '../cluster/clock.ts'
import { encodeHeld } from '../cluster/held.ts'
import type { Membership } from '../cluster/membership.ts'
import type { NodeStatus } from '../cluster/node.ts'
import { type Placement, sameId } from '../cluster/placement.ts'
import type { Store } from '../cluster/store.ts'
import { asMoeshError } from '../config/errors.ts'
import type { Logger } from '../telemetry/log.ts'
import type { ExpertHost, ShardId } from './host.ts'
import type { ReadyShard, ShardSources } from './shard-sources.ts'

export type AssignedOptions = {
  nodeId: string
  host: ExpertHost
  store: Store
  membership: Membership
  sources: Pick<ShardSources, 'get'>
  clock: Clock
  log: Pick<Logger, 'warn'>
}

/** Shards that are fetched and loaded at once: enough to overlap the two, few enough to bound memory and disk. */
const batchShards = 16
const fetchesAtOnce = 4
const retryMs = 1000
/**
 * Between saying that shards will go and letting them go: coordinators hear of it with their next beat. A call that still
 * comes is refused and made again elsewhere, which costs its tokens a round trip.
 */
const unloadAfterMs = 1500
const leaveCheckMs = 50
/** How often an idle node compares what it holds with what was told and asked. */
const selfCheckEveryMs = 5000

/**
 * Makes a node hold what the placement says: loads what the target asks for, reports it, and lets go what the active
 * placement no longer names. One pass at a time; a change during a pass causes another.
 */
export class Assigned {
  readonly ready: Promise<void>
  readonly #options: AssignedOptions
  #becomeReady: () => void = () => {}
  #target: Placement | null = null
  #active: Placement | null = null
  #state: NodeStatus['state'] = 'joining'
  #reason = 'waiting for a placement'
  #epoch = 0
  #isRunning = false
  #isDirty = false
  #pass: Promise<void> | null = null
  #retry: { cancel(): void } | null = null
  #selfCheck: { cancel(): void } | null = null
  /** What the last look found. */
  #disagreed = ''
  #interrupt: () => void = () => {}
  #unsubscribe: () => void = () => {}

  constructor(options: AssignedOptions) {
    this.#options = options
    this.ready = new Promise((resolve) => {
      this.#becomeReady = resolve
    })
  }

  start(): void {
    this.#isRunning = true
    this.#unsubscribe = this.#options.membership.onChange((changes) => {
      if (changes.some(({ kind }) => kind === 'placement' || kind === 'generation' || kind === 'reachable'))
        this.#wake()
    })
    this.#tell()
    this.#wake()
    this.#checkLater()
  }

  /** It holds what the target placement asks of it. */
  isSettled(): boolean {
    return this.#state === 'ready'
  }

  /** Asks for everything to be moved elsewhere, and settles when nothing is held or the deadline aborts. */
  async leave(deadline: AbortSignal): Promise<void> {
    this.#state = 'leaving'
    this.#reason = 'it is shutting down'
    this.#tell()
    while (!deadline.aborted && this.#options.host.usedBytes() > 0 && this.#hasOthers()) {
      await new Promise<void>((resolve) => this.#options.clock.after(leaveCheckMs, resolve))
    }
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    this.#unsubscribe()
    this.#retry?.cancel()
    this.#selfCheck?.cancel()
    this.#interrupt()
    await this.#pass
  }

  /** Without other nodes nothing can be moved: then leaving does not wait. */
  #hasOthers(): boolean {
    const { membership, nodeId } = this.#options
    return [...membership.view().nodes.values()].some(
      ({ record, status }) => record.role === 'expert' && record.id !== nodeId && status.state !== 'leaving',
    )
  }

  #checkLater(): void {
    this.#selfCheck = this.#options.clock.after(selfCheckEveryMs, () => {
      if (this.#pass === null) this.#checkSelf()
      this.#checkLater()
    })
  }

  /** What is held, what the cluster was told, and what the placement asks must agree, or is made to. */
  #checkSelf(): void {
    const { nodeId, host, membership, log } = this.#options
    const view = membership.view()
    const told = view.nodes.get(nodeId)?.status
    const { load, unload } = assignment(nodeId, this.#target, this.#active, host.held())
    const found: string[] = []
    if (view.isReachable && told && !isDeepStrictEqual(told.held, encodeHeld(host.held()))) {
      found.push('the cluster believes that other shards are held')
    }
    if (load.length + unload.length > 0) found.push(`${load.length} shards are missing, ${unload.length} too many`)
    const text = found.join('; ')
    // Twice in a row: a look may fall into a change.
    if (text !== '' && text === this.#disagreed) {
      log.warn({ found: text }, 'idle, and parts disagree; repaired')
      this.#tell()
      this.#wake()
    }
    this.#disagreed = text
  }

  #wake(): void {
    this.#isDirty = true
    this.#interrupt()
    if (this.#pass !== null || !this.#isRunning) return
    this.#pass = this.#run().finally(() => {
      this.#pass = null
      if (this.#isDirty) this.#wake()
    })
  }

  async #run(): Promise<void> {
    this.#isDirty = false
    try {
      await this.#readPlacements()
      await this.#follow()
    } catch (thrown) {
      const error = asMoeshError(thrown)
      this.#options.log.warn({ error }, 'the placement cannot be followed yet')
      this.#reason = error.message.slice(0, 1000)
      this.#tell()
      this.#retry?.cancel()
      this.#retry = this.#options.clock.after(retryMs, () => this.#wake())
    }
  }

  async #readPlacements(): Promise<void> {
    const { store, membership } = this.#options
    const view = membership.view()
    const id = (placement: Placement | null) => placement && { epoch: placement.epoch, token: placement.token }
    if (sameId(view.target, id(this.#target)) && sameId(view.active, id(this.#active))) return
    const { target, active } = await store.readPlacement({ target: id(this.#target), active: id(this.#active) })
    if (target !== null) this.#target = target
    if (active !== null) this.#active = active
  }

  async #follow(): Promise<void> {
    const { nodeId, host } = this.#options
    const target = this.#target
    const { load, unload } = assignment(nodeId, target, this.#active, host.held())
    for (let from = 0; from < load.length; from += batchShards) {
      // Another placement is there: the next pass begins with what it wants.
      if (this.#isStale()) return
      await this.#load(load.slice(from, from + batchShards))
      this.#reason = `loading, ${Math.max(0, load.length - from - batchShards)} shards to go`
      this.#tell()
    }
    if (unload.length > 0) {
      this.#tell(unload)
      await this.#pause(unloadAfterMs)
      if (this.#isStale()) return
      await host.unload(unload)
      this.#tell()
    }
    if (target === null) return
    this.#epoch = target.epoch
    if (this.#state === 'joining') {
      this.#state = 'ready'
      this.#becomeReady()
    }
    if (this.#state === 'ready') this.#reason = ''
    this.#tell()
  }

  /** What the pass works for is not what is wanted now. */
  #isStale(): boolean {
    return this.#isDirty || !this.#isRunning
  }

  /** Ends sooner when the pass becomes stale. */
  #pause(ms: number): Promise<void> {
    if (this.#isStale()) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = this.#options.clock.after(ms, resolve)
      this.#interrupt = () => {
        timer.cancel()
        resolve()
      }
    })
  }

  async #load(shards: readonly ShardId[]): Promise<void> {
    const { sources, host } = this.#options
    const ready: ReadyShard[] = []
    try {
      for (let from = 0; from < shards.length; from += fetchesAtOnce) {
        const wanted = shards.slice(from, from + fetchesAtOnce)
        const fetched = await Promise.allSettled(wanted.map((shard) => sources.get(shard)))
        for (const result of fetched) if (result.status === 'fulfilled') ready.push(result.value)
        for (const result of fetched) if (result.status === 'rejected') throw result.reason
      }
      await host.load(ready.map(({ source }) => source))
    } finally {
      await Promise.all(ready.map(({ release }) => release()))
    }
  }

  /** Status for the cluster: what is held, without what is about to go. */
  #tell(without: readonly ShardId[] = []): void {
    const { host, membership } = this.#options
    const gone = new Set(without.map(({ layer, expert }) => `${layer}/${expert}`))
    const held = new Map(
      [...host.held()].map(([layer, experts]) => [
        layer,
        [...experts].filter((expert) => !gone.has(`${layer}/${expert}`)),
      ]),
    )
    membership.update({
      state: this.#state,
      reason: this.#reason,
      usedBytes: host.usedBytes(),
      held: encodeHeld(held),
      epoch: this.#epoch,
    })
  }
}
