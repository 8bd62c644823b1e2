import { asMoeshError, MoeshError } from '../config/errors.ts'
import type { Clock } from './clock.ts'
import { type Eligible, eligibleNodes } from './eligible.ts'
import { createElection, type Election } from './leader.ts'
import { mergeLoads } from './load.ts'
import type { Membership } from './membership.ts'
import { copiesOf, type Placement, type PlacementId, sameId } from './placement.ts'
import { balancednessOf, type Plan, type PlannerLayer, planPlacement } from './planner/plan.ts'
import type { ClusterEvent, DrainedBy, Store } from './store.ts'
import { lastCopies, missingCopies, presentCopies, targetLayers } from './target.ts'
import type { ClusterView } from './view.ts'

export type ControllerOptions = {
  store: Store
  membership: Membership
  self: { id: string; incarnation: string }
  leaseMs: number
  clock: Clock
  nowUnixMs: () => number
  modelDigest: string
  layers: readonly { layer: number; experts: number; shardBytes: number }[]
  minReplicas: number
  /** The numerics class that this coordinator would choose where nodes differ. */
  preferredNumerics: string
  /** Nodes that do not answer although their lease runs: planned around before the lease ends. */
  suspects: () => ReadonlySet<string>
  onPlacement: (active: Placement | null) => void
  report: (error: unknown) => void
}

/** Both balances are of one reading of the load; equal where nothing is to be moved. */
export type RebalanceOutcome = {
  plan: Plan
  balancednessBefore: number
  balancednessAfter: number
  bytes: number
  epoch: number
}

/** A tick looks at everything; between ticks, changes of the membership cause one. */
const tickMs = 500
const debounceMs = 30
/** Load must have drifted this far from what is possible before anything moves for it, and not sooner than this. */
const balanceGapMin = 0.1
const loadReplanEveryMs = 30_000
/** A node that makes no progress with what it shall load for so long is done without, and tried again later. */
const stuckAfterMs = 30_000
const unableForMs = 60_000

/**
 * Every coordinator runs one; it acts while its own holds the lease of the leader. A new placement is written as the
 * target, nodes load what it asks beside what they hold, and only when all of them report that they hold it does it
 * become the active one, after which leftovers go: make before break.
 */
export class Controller {
  readonly #options: ControllerOptions
  #active: Placement | null = null
  #target: Placement | null = null
  readonly #election: Election
  #lastLoadPlanMs = Number.NEGATIVE_INFINITY
  #timer: { cancel(): void } | null = null
  #ticking: Promise<void> | null = null
  /** What was begun last of all that reads and writes placements. */
  #last: Promise<void> = Promise.resolve()
  #again = false
  #isRunning = false
  #unsubscribe: () => void = () => {}
  #knownUnmet = ''
  #knownExcluded = ''
  #knownSuspended: ReadonlySet<string> = new Set()
  /** Nodes that shall go, but stay in the target with what nobody else has room for. */
  #keepers: ReadonlySet<string> = new Set()
  /** Of the target: copies that nodes do not report yet, and since when there are so many. */
  #missing = { copies: 0, sinceMs: 0 }
  /** Nodes that could not load their part: node id → until when they are done without. */
  readonly #unable = new Map<string, number>()
  /** Flags that a store which came back empty has forgotten. */
  #forgotten: { drained: ReadonlyMap<string, DrainedBy>; suspended: ReadonlyMap<string, string> } | null = null

  constructor(options: ControllerOptions) {
    this.#options = options
    const { store, self, clock, leaseMs } = options
    this.#election = createElection({
      store,
      self,
      clock,
      leaseMs,
      onChange: (token) => {
        if (token !== null) void this.#say('leader', self.id, `${self.id} leads the cluster`)
        this.poke()
      },
    })
  }

  async start(): Promise<void> {
    this.#isRunning = true
    this.#unsubscribe = this.#options.membership.onChange((changes, view) => {
      if (changes.some(({ kind }) => kind === 'generation') && view.isSettling) {
        this.#forgotten = { drained: view.drained, suspended: view.suspended }
      }
      this.#tellChanges(changes, view)
      this.poke()
    })
    this.#election.start()
    await this.#tick()
  }

  /** Something changed: look soon. */
  poke(): void {
    if (this.#ticking !== null) this.#again = true
    else this.#schedule(debounceMs)
  }

  isLeader(): boolean {
    return this.#election.token() !== null
  }

  active(): Placement | null {
    return this.#active
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    this.#unsubscribe()
    this.#timer?.cancel()
    await this.#last
    await this.#ticking
    await this.#election.stop()
  }

  /** Plans from what is seen now; writes the plan as the target unless it is a dry run. Errors: NOT_LEADER. */
  rebalance(dryRun: boolean): Promise<RebalanceOutcome> {
    return this.#alone(() => this.#rebalance(dryRun))
  }

  async #rebalance(dryRun: boolean): Promise<RebalanceOutcome> {
    const view = this.#options.membership.view()
    const layers = await this.#plannerLayers()
    const plan = this.#plan(layers, view, 1)
    const balancednessBefore = this.#presentBalancedness(layers, view)
    const bytes = plan.moves.reduce((sum, { layer, to }) => sum + (to === '' ? 0 : this.#shardBytes(layer)), 0)
    // A plan without moves is not written: the split of the rows stays as it is, too.
    const balancednessAfter = plan.moves.length === 0 ? balancednessBefore : plan.balancedness
    const outcome = { plan, balancednessBefore, balancednessAfter, bytes }
    if (dryRun || plan.moves.length === 0) return { ...outcome, epoch: 0 }
    const placement = await this.#writeTarget(plan, view, 'an operator asked for it')
    return { ...outcome, epoch: placement.epoch }
  }

  #schedule(delayMs: number): void {
    this.#timer?.cancel()
    if (this.#isRunning) this.#timer = this.#options.clock.after(delayMs, () => void this.#tick())
  }

  /** One after the other: two that write a target at once would give two placements the same epoch. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work)
    this.#last = result.then(
      () => {},
      () => {},
    )
    return result
  }

  #tick(): Promise<void> {
    this.#ticking ??= this.#alone(() => this.#act())
      .catch((thrown: unknown) => {
        const { code } = asMoeshError(thrown)
        // Deposed meanwhile: the store refused it, and the election will say so.
        if (code !== 'NOT_LEADER' && code !== 'STORE_UNREACHABLE') this.#options.report(thrown)
      })
      .finally(() => {
        this.#ticking = null
        this.#schedule(this.#again ? debounceMs : tickMs)
        this.#again = false
      })
    return this.#ticking
  }

  async #act(): Promise<void> {
    const { membership } = this.#options
    await this.#readPlacements(membership.view())
    // Whoever led meanwhile has restored them; later they would be stale.
    if (!membership.view().isSettling) this.#forgotten = null
    if (!this.isLeader()) return
    await this.#restoreFlags()
    const view = membership.view()
    this.#noticeStuck(view)
    await this.#tellExcluded(view)
    const why = this.#whyPlan(view) ?? (await this.#whyRebalance(view))
    if (why !== null) await this.#replan(view, why)
    await this.#activateIfHeld(membership.view())
  }

  async #readPlacements(view: ClusterView): Promise<void> {
    const known = { target: idOf(this.#target), active: idOf(this.#active) }
    if (sameId(view.target, known.target) && sameId(view.active, known.active)) return
    const { target, active } = await this.#options.store.readPlacement(known)
    if (target !== null) this.#target = target
    // A store that came back empty has none: the last one known goes on.
    if (active !== null) {
      this.#active = active
      this.#options.onPlacement(active)
    }
  }

  #eligible(view: ClusterView): Eligible {
    const { modelDigest, preferredNumerics, suspects, clock } = this.#options
    const excluded = new Map([...suspects()].map((id) => [id, 'it does not answer']))
    for (const [id, untilMs] of this.#unable) {
      if (untilMs <= clock.nowMs()) this.#unable.delete(id)
      else excluded.set(id, 'it could not load its experts')
    }
    const presentNumerics = this.#target?.numerics ?? this.#active?.numerics ?? null
    return eligibleNodes(view, { modelDigest, presentNumerics, preferredNumerics, excluded })
  }

  /** Nodes came or went: reasons that don't wait. */
  #whyPlan(view: ClusterView): string | null {
    // Who does not show up yet may be alive: nothing is planned around it. Before the first placement nobody is missed.
    if (view.isSettling && (this.#target ?? this.#active) !== null) return null
    const eligible = this.#eligible(view).nodes.map(({ id }) => id)
    if (eligible.length === 0) return null
    const target = this.#target
    if (target === null || target.modelDigest !== this.#options.modelDigest) return 'there is no placement yet'
    // The store forgot the placement; what is known goes back there.
    if (view.target === null) return 'the store lost the placement'
    const planned = new Set(target.nodes)
    const gone = target.nodes.filter((id) => !eligible.includes(id) && !(this.#keepers.has(id) && view.nodes.has(id)))
    if (gone.length > 0) return `${gone.join(', ')} can't hold experts any more`
    const added = eligible.filter((id) => !planned.has(id))
    if (added.length > 0) return `${added.join(', ')} joined`
    return null
  }

  async #whyRebalance(view: ClusterView): Promise<string | null> {
    const { clock } = this.#options
    if (!this.#isSettled()) return null
    if (clock.nowMs() - this.#lastLoadPlanMs < loadReplanEveryMs || view.isSettling) return null
    this.#lastLoadPlanMs = clock.nowMs()
    const layers = await this.#plannerLayers()
    const before = this.#presentBalancedness(layers, view)
    if (before > 1 - balanceGapMin) return null
    const plan = this.#plan(layers, view, undefined)
    return plan.balancedness - before > balanceGapMin ? 'the load has moved' : null
  }

  async #replan(view: ClusterView, why: string): Promise<void> {
    const plan = this.#plan(await this.#plannerLayers(), view, undefined)
    const unmet = plan.unmet.map(({ text }) => text).join('; ')
    if (unmet !== this.#knownUnmet) {
      this.#knownUnmet = unmet
      await this.#say('placement.unmet', '', unmet === '' ? 'the placement meets all its rules again' : unmet)
    }
    await this.#writeTarget(plan, view, why)
  }

  #plan(layers: readonly PlannerLayer[], view: ClusterView, movesMax: number | undefined): Plan {
    const { minReplicas } = this.#options
    const { nodes } = this.#eligible(view)
    const present = presentCopies(view, nodes, this.#isSettled() ? this.#target : null)
    return planPlacement({ layers, nodes, present, minReplicas, ...(movesMax === undefined ? {} : { movesMax }) })
  }

  /** There is a placement, and every node holds what it asks. */
  #isSettled(): boolean {
    return this.#target !== null && sameId(idOf(this.#target), idOf(this.#active))
  }

  async #plannerLayers(): Promise<PlannerLayer[]> {
    const loads = mergeLoads(await this.#options.store.loads())
    return this.#options.layers.map(({ layer, experts, shardBytes }) => ({
      layer,
      experts,
      shardBytes,
      loads: loads.get(layer) ?? new Float64Array(experts),
    }))
  }

  /** Of the active placement. */
  #presentBalancedness(layers: readonly PlannerLayer[], view: ClusterView): number {
    if (this.#active === null) return 1
    const { nodes } = this.#eligible(view)
    return balancednessOf([...copiesOf(this.#active)], layers, nodes)
  }

  async #writeTarget(plan: Plan, view: ClusterView, why: string): Promise<Placement> {
    const { store, modelDigest, nowUnixMs } = this.#options
    const token = this.#election.token()
    if (token === null) throw new MoeshError('NOT_LEADER', 'another coordinator leads by now', 'try again')
    const eligible = this.#eligible(view)
    const kept = lastCopies(plan.copies, this.#options.layers, view, eligible.numerics)
    const nodes = [...new Set([...eligible.nodes.map(({ id }) => id), ...kept.map(({ node }) => node)])].sort()
    const placement: Placement = {
      epoch: Math.max(this.#target?.epoch ?? 0, this.#active?.epoch ?? 0) + 1,
      token,
      modelDigest,
      numerics: eligible.numerics,
      createdUnixMs: nowUnixMs(),
      why: why.slice(0, 1000),
      nodes,
      layers: targetLayers([...plan.copies, ...kept], this.#options.layers, nodes),
    }
    await store.writeTarget(placement)
    this.#keepers = new Set(kept.map(({ node }) => node))
    this.#target = placement
    const loaded = plan.moves.filter(({ to }) => to !== '').length
    await this.#say('epoch', '', `epoch ${placement.epoch}: ${why}; ${loaded} copies to load`)
    return placement
  }

  async #activateIfHeld(view: ClusterView): Promise<void> {
    const target = this.#target
    const token = this.#election.token()
    if (target === null || token === null || sameId(idOf(target), idOf(this.#active))) return
    if (missingCopies(target, view).size > 0) return
    await this.#options.store.activate({ epoch: target.epoch, token: target.token }, token)
    this.#active = target
    this.#options.onPlacement(target)
    await this.#say('epoch.active', '', `epoch ${target.epoch} is active`)
  }

  #shardBytes(layer: number): number {
    return this.#options.layers.find((entry) => entry.layer === layer)?.shardBytes ?? 0
  }

  /** A target that does not get on must not wait for ever: without it no drain would end, no copy be replaced. */
  #noticeStuck(view: ClusterView): void {
    const nowMs = this.#options.clock.nowMs()
    const target = this.#target
    const isWaiting = target !== null && !sameId(idOf(target), idOf(this.#active)) && !view.isSettling
    const missing = isWaiting ? missingCopies(target, view) : new Map<string, number>()
    const copies = [...missing.values()].reduce((sum, count) => sum + count, 0)
    if (copies === 0 || copies !== this.#missing.copies) this.#missing = { copies, sinceMs: nowMs }
    if (nowMs - this.#missing.sinceMs < stuckAfterMs) return
    this.#missing.sinceMs = nowMs
    for (const [id, count] of missing) {
      this.#unable.set(id, nowMs + unableForMs)
      const reason = view.nodes.get(id)?.status.reason ?? ''
      void this.#say('node.stuck', id, `${id} has not loaded ${count} experts for ${stuckAfterMs / 1000} s: ${reason}`)
    }
  }

  async #restoreFlags(): Promise<void> {
    const flags = this.#forgotten
    if (flags === null) return
    const { store } = this.#options
    for (const [id, by] of flags.drained) await store.setDrained(id, by)
    for (const [id, reason] of flags.suspended) await store.setSuspended(id, reason)
    this.#forgotten = null
  }

  async #tellExcluded(view: ClusterView): Promise<void> {
    const excluded = [...this.#eligible(view).excluded].map(([id, reason]) => `${id} gets no experts: ${reason}`)
    const text = excluded.sort().join('; ')
    if (text === this.#knownExcluded) return
    this.#knownExcluded = text
    await this.#say('placement.excluded', '', text === '' ? 'all expert nodes may get experts' : text)
  }

  #tellChanges(changes: Parameters<Parameters<Membership['onChange']>[0]>[0], view: ClusterView): void {
    const suspended = [...view.suspended].filter(([id]) => !this.#knownSuspended.has(id))
    this.#knownSuspended = new Set(view.suspended.keys())
    if (!this.isLeader()) return
    const texts = {
      joined: 'joined',
      replaced: 'came back as a new process',
      left: 'left',
      lost: 'is lost: its lease ended',
    } as const
    const events: ClusterEvent[] = []
    for (const change of changes) {
      if (change.kind === 'joined' || change.kind === 'replaced' || change.kind === 'left' || change.kind === 'lost') {
        events.push(this.#event(`node.${change.kind}`, change.id, `${change.id} ${texts[change.kind]}`))
      }
    }
    for (const [id, reason] of suspended) {
      events.push(this.#event('node.suspended', id, `${id} is suspended: ${reason}`))
    }
    if (events.length > 0) this.#options.store.appendEvents(events).catch(() => {})
  }

  #event(kind: string, node: string, text: string): ClusterEvent {
    return { timeUnixMs: this.#options.nowUnixMs(), kind, node, text: text.slice(0, 4000), fields: {} }
  }

  /** Events are for people: without the store they are lost, and nothing waits for that. */
  async #say(kind: string, node: string, text: string): Promise<void> {
    await this.#options.store.appendEvents([this.#event(kind, node, text)]).catch(() => {})
  }
}

function idOf(placement: Placement | null): PlacementId | null {
  return placement && { epoch: placement.epoch, token: placement.token }
}
