import { MoeshError } from '../config/errors.ts'
import type { ExpertCall, ExpertReply } from '../dispatch/transport.ts'
import { shardLayout } from '../model/tensors.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import type { ExpertHost, ExpertHostOptions, ShardId, ShardSource } from './host.ts'
import { Rank } from './rank.ts'

/**
 * Experts whose sessions are built in one go. A rank computes nothing while it builds, so what is loaded beside a
 * running node comes in small groups; a node that holds nothing of a layer yet loads large ones, which run faster.
 */
const groupMax = { first: 32, later: 4 } as const

/**
 * WebGPU binds few buffers to a program, so the runtime joins the outputs of a large group in several steps, and fails
 * in a step to which no expert has brought a row. Of a group that is joined in one step, at least one has rows.
 */
const webgpuGroupMax = 4

/** Throws INVALID_ARGUMENT for more ranks than the provider bears. */
export async function createLocalHost(options: ExpertHostOptions): Promise<ExpertHost> {
  // The runtime's WebGPU sessions of a process share a command recorder without a lock: two at a time end the process.
  if (options.provider === 'webgpu' && options.ranks > 1) {
    throw new MoeshError(
      'INVALID_ARGUMENT',
      `a process has one WebGPU device, which one rank can use: ${options.ranks} ranks were asked for`,
      'use --ranks 1, and a process for each device',
    )
  }
  return new LocalHost(options)
}

class LocalHost implements ExpertHost {
  readonly ranks: number
  readonly failed: Promise<Error>
  readonly #options: ExpertHostOptions
  readonly #ranks: Rank[]
  /** layer → expert → the rank that holds it. */
  readonly #homes = new Map<number, Map<number, number>>()
  readonly #held = new Map<number, Set<number>>()
  #usedBytes = 0
  #computedMs = 0
  #changes: Promise<void> = Promise.resolve()

  constructor(options: ExpertHostOptions) {
    this.#options = options
    this.ranks = options.ranks
    const { spec, format, provider, cpus, stageDir } = options
    const avoidSaturation = provider === 'cpu' && saturatesInt8(stageDir)
    this.#ranks = Array.from(
      { length: options.ranks },
      (_, index) => new Rank({ spec, format, provider, stageDir, avoidSaturation, cpu: cpus?.[index] ?? null }),
    )
    this.failed = Promise.race(this.#ranks.map((rank) => rank.failed))
  }

  held(): ReadonlyMap<number, ReadonlySet<number>> {
    return this.#held
  }

  usedBytes(): number {
    return this.#usedBytes
  }

  load(shards: readonly ShardSource[]): Promise<void> {
    return this.#change(async () => {
      const byRank = this.#assign(shards)
      await Promise.all(
        byRank.map(async ({ rank, layer, sources }) => {
          const { first, later } = groupMax
          const most = this.#options.provider === 'webgpu' ? webgpuGroupMax : first
          const size = this.#held.get(layer)?.size ? later : most
          for (let from = 0; from < sources.length; from += size) {
            const group = sources.slice(from, from + size)
            await this.#rank(rank).load(layer, group)
            for (const { expert } of group) this.#markHeld(layer, expert, rank)
          }
        }),
      )
    })
  }

  unload(shards: readonly ShardId[]): Promise<void> {
    return this.#change(async () => {
      const byHome = new Map<string, { rank: number; layer: number; experts: number[] }>()
      for (const { layer, expert } of shards) {
        const rank = this.#homes.get(layer)?.get(expert)
        if (rank === undefined) continue
        const key = `${rank}/${layer}`
        const entry = byHome.get(key) ?? { rank, layer, experts: [] }
        entry.experts.push(expert)
        byHome.set(key, entry)
      }
      for (const { rank, layer, experts } of byHome.values()) {
        await this.#rank(rank).prepareUnload(layer, experts)
        for (const expert of experts) this.#markGone(layer, expert)
        // Messages and jobs reach a rank in order: calls that were accepted before are computed before.
        await this.#rank(rank).unload(layer, experts)
      }
    })
  }

  async call(call: ExpertCall): Promise<ExpertReply> {
    const times = await this.#run(call)
    for (const timeMs of times) this.#computedMs += timeMs
    return { computeMs: Math.max(0, ...times) }
  }

  /** What each rank took for its rows, in ms. */
  async #run(call: ExpertCall): Promise<number[]> {
    const rows = this.#rowsByRank(call)
    const runs: Promise<number>[] = []
    this.#ranks.forEach((rank, index) => {
      const rowsHere = rows[index] ?? 0
      if (rowsHere > 0) runs.push(rank.run(call, rowsHere))
    })
    const [first] = runs
    if (first && runs.length === 1) return [await first]
    // Even where one rank fails, the call has not settled before all have let go of its buffers.
    return (await Promise.allSettled(runs)).map((run) => {
      if (run.status === 'rejected') throw run.reason
      return run.value
    })
  }

  computedMs(): number {
    return this.#computedMs
  }

  runtimeMs(): number {
    return this.#ranks.reduce((sum, rank) => sum + rank.runtimeMs(), 0)
  }

  async close(): Promise<void> {
    await this.#changes
    await Promise.all(this.#ranks.map((rank) => rank.close()))
  }

  /** Changes of what is held run one after the other. */
  #change(work: () => Promise<void>): Promise<void> {
    const turn = this.#changes.then(work)
    this.#changes = turn.catch(() => {})
    return turn
  }

  #rank(index: number): Rank {
    const rank = this.#ranks[index]
    if (!rank) throw new MoeshError('INTERNAL', `there is no rank ${index}`)
    return rank
  }

  #shardBytes(layer: number): number {
    const ffn = this.#options.spec.layers[layer]?.ffn
    return ffn?.kind === 'moe' ? shardLayout(this.#options.spec, ffn, this.#options.format).bytes : 0
  }

  /** Each shard goes to the rank that has the fewest of its layer: rows of a layer meet all ranks at once. */
  #assign(shards: readonly ShardSource[]): { rank: number; layer: number; sources: ShardSource[] }[] {
    const wanted = new Map<number, ShardSource[]>()
    for (const shard of shards) {
      if (this.#homes.get(shard.layer)?.has(shard.expert)) continue
      wanted.set(shard.layer, [...(wanted.get(shard.layer) ?? []), shard])
    }
    const result: { rank: number; layer: number; sources: ShardSource[] }[] = []
    for (const [layer, sources] of wanted) {
      const counts = this.#ranks.map(() => 0)
      for (const rank of this.#homes.get(layer)?.values() ?? []) counts[rank] = (counts[rank] ?? 0) + 1
      const perRank = this.#ranks.map((): ShardSource[] => [])
      for (const source of sources.sort((a, b) => a.expert - b.expert)) {
        const rank = counts.indexOf(Math.min(...counts))
        counts[rank] = (counts[rank] ?? 0) + 1
        perRank[rank]?.push(source)
      }
      perRank.forEach((mine, rank) => {
        if (mine.length > 0) result.push({ rank, layer, sources: mine })
      })
    }
    return result
  }

  #markHeld(layer: number, expert: number, rank: number): void {
    const homes = this.#homes.get(layer) ?? new Map<number, number>()
    homes.set(expert, rank)
    this.#homes.set(layer, homes)
    const held = this.#held.get(layer) ?? new Set<number>()
    held.add(expert)
    this.#held.set(layer, held)
    this.#usedBytes += this.#shardBytes(layer)
  }

  #markGone(layer: number, expert: number): void {
    if (!this.#homes.get(layer)?.delete(expert)) return
    this.#held.get(layer)?.delete(expert)
    this.#usedBytes -= this.#shardBytes(layer)
  }

  /** How many of a call's rows each rank computes. */
  #rowsByRank(call: ExpertCall): number[] {
    const homes = this.#homes.get(call.layer)
    const rows = this.#ranks.map(() => 0)
    for (let index = 0; index < call.experts.length; index++) {
      const expert = call.experts[index] ?? -1
      const rank = homes?.get(expert)
      if (rank === undefined) {
        throw new MoeshError('EXPERT_NOT_HELD', `expert ${expert} of layer ${call.layer} is not held here`)
      }
      rows[rank] = (rows[rank] ?? 0) + (call.counts[index] ?? 0)
    }
    return rows
  }
}
