import { MoeshError } from '../config/errors.ts'
import { localTransport } from '../dispatch/local-transport.ts'
import type { ExpertTransport } from '../dispatch/transport.ts'
import type { ExpertHost } from '../expert/host.ts'
import { createLocalHost } from '../expert/local-host.ts'
import type { PackReader } from '../pack/reader.ts'

export type FallbackOptions = {
  pack: PackReader
  stageDir: string
  /** Shards held changed: the routes must be made anew. */
  onChange: () => void
  report: (error: unknown) => void
}

/** Longer than a call of an audit may take. */
const judgeKeepMs = 5000

/** An expert is loaded here when no node has held it for so long: a node that is just moving it is sooner done. */
const loadAfterMs = 150

/**
 * The last resort of a coordinator: experts that rows wait for and that no node holds are loaded into this process, and
 * let go when a node has them again. A request waits for that instead of failing.
 */
export class FallbackExperts {
  readonly #options: FallbackOptions
  readonly #wanted = new Map<string, { layer: number; expert: number }>()
  /** Experts loaded to judge an audit: `layer/expert` → until when they stay, whoever else holds them. */
  readonly #judging = new Map<string, number>()
  #timer: NodeJS.Timeout | null = null
  #host: Promise<ExpertHost> | null = null
  #transport: ExpertTransport | null = null
  #held: ReadonlyMap<number, ReadonlySet<number>> = new Map()
  #closed = false

  constructor(options: FallbackOptions) {
    this.#options = options
  }

  held(): ReadonlyMap<number, ReadonlySet<number>> {
    return this.#held
  }

  transport(): ExpertTransport | undefined {
    return this.#transport ?? undefined
  }

  /** Rows wait for this expert. */
  want(layer: number, expert: number): void {
    if (this.#closed || this.#held.get(layer)?.has(expert)) return
    this.#wanted.set(`${layer}/${expert}`, { layer, expert })
    // What is wanted meanwhile is loaded with it: a node takes many experts with it when it goes.
    this.#timer ??= setTimeout(() => {
      this.#load()
        .catch(this.#options.report)
        .finally(() => {
          this.#timer = null
          for (const next of this.#wanted.values()) this.want(next.layer, next.expert)
        })
    }, loadAfterMs)
  }

  /** The way to the own computation of an expert, which is loaded for it and stays for some seconds. */
  async judge(layer: number, expert: number): Promise<ExpertTransport> {
    this.#judging.set(`${layer}/${expert}`, performance.now() + judgeKeepMs)
    this.#wanted.set(`${layer}/${expert}`, { layer, expert })
    await this.#load()
    const transport = this.#held.get(layer)?.has(expert) ? this.#transport : null
    if (!transport) throw new MoeshError('EXPERT_NOT_HELD', `expert ${expert} of layer ${layer} was not loaded here`)
    return transport
  }

  /** Nodes hold these again. */
  async release(isHeldElsewhere: (layer: number, expert: number) => boolean): Promise<void> {
    for (const [key, { layer, expert }] of this.#wanted) if (isHeldElsewhere(layer, expert)) this.#wanted.delete(key)
    if (this.#host === null) return
    const host = await this.#host
    const nowMs = performance.now()
    for (const [key, untilMs] of this.#judging) if (untilMs <= nowMs) this.#judging.delete(key)
    const gone = [...host.held()].flatMap(([layer, experts]) =>
      [...experts]
        .filter((expert) => isHeldElsewhere(layer, expert) && !this.#judging.has(`${layer}/${expert}`))
        .map((expert) => ({ layer, expert })),
    )
    if (gone.length === 0) return
    await host.unload(gone)
    this.#publish(host)
  }

  async close(): Promise<void> {
    this.#closed = true
    if (this.#timer) clearTimeout(this.#timer)
    await (await this.#host)?.close()
  }

  async #load(): Promise<void> {
    const wanted = [...this.#wanted.values()]
    this.#wanted.clear()
    if (this.#closed || wanted.length === 0) return
    const { pack, stageDir } = this.#options
    const { spec, weightFormat: format } = pack.manifest
    this.#host ??= createLocalHost({ spec, format, ranks: 1, provider: 'cpu', cpus: null, stageDir })
    const host = await this.#host
    const shards = wanted.map(({ layer, expert }) => pack.shard(layer, expert))
    await host.load(shards.map((shard) => ({ ...shard, path: pack.path(shard.file) })))
    this.#transport ??= localTransport(fallbackNodeId, host)
    this.#publish(host)
  }

  #publish(host: ExpertHost): void {
    this.#held = new Map([...host.held()].map(([layer, experts]) => [layer, new Set(experts)]))
    this.#options.onChange()
  }
}

/** In route tables; no node of a cluster can have this name. */
export const fallbackNodeId = '(coordinator)'
