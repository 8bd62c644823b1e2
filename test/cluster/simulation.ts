import assert from 'node:assert/strict'
import { assignment } from '../../services/cluster/assignment.ts'
import { Controller } from '../../services/cluster/controller.ts'
import { encodeHeld } from '../../services/cluster/held.ts'
import { createMembership, type Membership } from '../../services/cluster/membership.ts'
import type { NodeRecord, NodeStatus } from '../../services/cluster/node.ts'
import type { Placement } from '../../services/cluster/placement.ts'
import { nodeEntry } from '../cluster-store/contract.ts'
import { FakeClock } from './fake-clock.ts'
import { FaultyStore } from './faulty-store.ts'

export const leaseMs = 3000
export const layers = [
  { layer: 1, experts: 8, shardBytes: 1 },
  { layer: 2, experts: 8, shardBytes: 1 },
]
export const shardCount = 16

/** Expert nodes and coordinators in one process: real membership, election and controller; time, store and loading are not. */
export class Simulation {
  readonly clock = new FakeClock()
  readonly store = new FaultyStore(() => this.clock.nowMs())
  readonly experts = new Map<string, SimulatedExpert>()
  readonly coordinators = new Map<string, SimulatedCoordinator>()
  readonly errors: unknown[] = []
  minReplicas = 1
  #incarnations = 0

  async expert(id: string, more: Partial<NodeRecord> = {}): Promise<void> {
    const record = { ...nodeEntry(id, `i${this.#incarnations++}`).record, memoryBytes: 1000, ...more }
    const expert = new SimulatedExpert(this, record)
    this.experts.set(id, expert)
    await expert.membership.start()
  }

  async coordinator(id: string): Promise<void> {
    const coordinator = new SimulatedCoordinator(this, id, `i${this.#incarnations++}`)
    this.coordinators.set(id, coordinator)
    await coordinator.start()
  }

  /** Without a word: what SIGKILL or a cut network looks like to the others. */
  kill(id: string): void {
    this.store.cutOff.add(id)
    const expert = this.experts.get(id)
    if (expert) expert.isAlive = false
    this.experts.delete(id)
    this.coordinators.delete(id)
  }

  /** How many living nodes hold each shard, the fewest. */
  fewestCopies(): number {
    let fewest = Number.POSITIVE_INFINITY
    for (const { layer, experts } of layers) {
      for (let expert = 0; expert < experts; expert++) fewest = Math.min(fewest, this.holders(layer, expert).length)
    }
    return fewest
  }

  holders(layer: number, expert: number): string[] {
    return [...this.experts.values()].filter(({ held }) => held.get(layer)?.has(expert)).map(({ id }) => id)
  }

  random(): number {
    this.#drawn += 1
    return (this.#drawn * 0.618) % 1
  }
  #drawn = 0
}

export class SimulatedExpert {
  readonly id: string
  readonly membership: Membership
  readonly held = new Map<number, Set<number>>()
  isAlive = true
  loadMs = 10
  isStuck = false
  #state: NodeStatus['state'] = 'joining'
  readonly #world: Simulation
  readonly #record: NodeRecord
  #target: Placement | null = null
  #active: Placement | null = null
  #isBusy = false
  #isDirty = false

  constructor(world: Simulation, record: NodeRecord) {
    this.#world = world
    this.#record = record
    this.id = record.id
    this.membership = createMembership({
      store: world.store.seenBy(record.id),
      self: record,
      clock: world.clock,
      leaseMs,
      random: () => world.random(),
    })
    this.membership.onChange(() => void this.#follow())
  }

  shards(): number {
    let count = 0
    for (const experts of this.held.values()) count += experts.size
    return count
  }

  leave(): void {
    this.#state = 'leaving'
    this.#tell()
  }

  async #follow(): Promise<void> {
    if (!this.isAlive) return
    this.#isDirty = this.#isBusy
    if (this.#isBusy) return
    this.#isBusy = true
    try {
      const known = { target: this.#target, active: this.#active }
      const { target, active } = await this.#world.store.seenBy(this.id).readPlacement(known)
      this.#target = target ?? this.#target
      this.#active = active ?? this.#active
    } catch {
      // The store is away: the next change asks again.
    }
    const { load, unload } = assignment(this.id, this.#target, this.#active, this.held)
    for (const { layer, expert } of unload) {
      const others = this.#world.holders(layer, expert).filter((id) => id !== this.id)
      assert.notEqual(others.length, 0, `${this.id} drops the last live copy of expert ${expert} in layer ${layer}`)
      this.held.get(layer)?.delete(expert)
    }
    if (this.#state === 'joining' && this.#target !== null && load.length === 0) this.#state = 'ready'
    this.#tell()
    const [next] = load
    if (next === undefined || this.isStuck) {
      this.#isBusy = false
      if (this.#isDirty) return this.#follow()
      if (this.#state === 'leaving' && this.shards() === 0) {
        this.isAlive = false
        this.#world.experts.delete(this.id)
        await this.membership.stop()
      }
      return
    }
    this.#world.clock.after(this.loadMs, () => {
      const experts = this.held.get(next.layer) ?? new Set()
      this.held.set(next.layer, experts.add(next.expert))
      const isFull = this.shards() > this.#record.memoryBytes
      assert.ok(!isFull || this.#target !== this.#active, `${this.id} holds more than its memory`)
      this.#isBusy = false
      void this.#follow()
    })
  }

  #tell(): void {
    this.membership.update({
      state: this.#state,
      reason: this.isStuck ? 'its disk is full' : '',
      usedBytes: this.shards(),
      held: encodeHeld(this.held),
      epoch: this.#target?.epoch ?? 0,
    })
  }
}

export class SimulatedCoordinator {
  readonly membership: Membership
  readonly controller: Controller

  constructor(world: Simulation, id: string, incarnation: string) {
    const store = world.store.seenBy(id)
    const self = { ...nodeEntry(id, incarnation).record, role: 'coordinator' as const, memoryBytes: 0 }
    this.membership = createMembership({
      store,
      self,
      status: { state: 'ready', reason: '', usedBytes: 0, held: {}, epoch: 0 },
      clock: world.clock,
      leaseMs,
      random: () => world.random(),
    })
    this.controller = new Controller({
      store,
      membership: this.membership,
      self,
      leaseMs,
      clock: world.clock,
      nowUnixMs: () => 1_700_000_000_000 + world.clock.nowMs(),
      modelDigest: 'digest',
      layers,
      minReplicas: world.minReplicas,
      preferredNumerics: 'class',
      suspects: () => new Set(),
      onPlacement: () => {},
      report: (error) => world.errors.push(error),
    })
  }

  async start(): Promise<void> {
    await this.membership.start()
    await this.controller.start()
  }
}
