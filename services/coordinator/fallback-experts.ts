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

/** An expert is loaded here when no node has held it for so long: a node that is just moving it is sooner done. */
const loadAfterMs = 150

/**
 * The last resort of a coordinator: experts that rows wait for and that no node holds are loaded into this process, and
 * let go when a node has them again. A request waits for that instead of failing.
 */
export class FallbackExperts {
  readonly #options: FallbackOptions
  readonly #wanted = new Map<string, NodeJS.Timeout>()
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
    const key = `${layer}/${expert}`
    if (this.#closed || this.#wanted.has(key) || this.#held.get(layer)?.has(expert)) return
    const timer = setTimeout(() => {
      this.#load(layer, expert)
        .catch(this.#options.report)
        .finally(() => this.#wanted.delete(key))
    }, loadAfterMs)
    this.#wanted.set(key, timer)
  }

  /** Nodes hold these again. */
  async release(isHeldElsewhere: (layer: number, expert: number) => boolean): Promise<void> {
    for (const [key, timer] of this.#wanted) {
      const [layer = 0, expert = 0] = key.split('/').map(Number)
      if (!isHeldElsewhere(layer, expert)) continue
      clearTimeout(timer)
      this.#wanted.delete(key)
    }
    if (this.#host === null) return
    const host = await this.#host
    const gone = [...host.held()].flatMap(([layer, experts]) =>
      [...experts].filter((expert) => isHeldElsewhere(layer, expert)).map((expert) => ({ layer, expert })),
    )
    if (gone.length === 0) return
    await host.unload(gone)
    this.#publish(host)
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const timer of this.#wanted.values()) clearTimeout(timer)
    await (await this.#host)?.close()
  }

  async #load(layer: number, expert: number): Promise<void> {
    if (this.#closed) return
    const { pack, stageDir } = this.#options
    const { spec, weightFormat: format } = pack.manifest
    this.#host ??= createLocalHost({ spec, format, ranks: 1, provider: 'cpu', stageDir })
    const host = await this.#host
    const shard = pack.shard(layer, expert)
    await host.load([{ ...shard, path: pack.path(shard.file) }])
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
