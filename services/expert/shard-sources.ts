import { asMoeshError, MoeshError } from '../config/errors.ts'
import type { Manifest } from '../pack/manifest.ts'
import type { PackReader } from '../pack/reader.ts'
import type { ShardId, ShardSource } from './host.ts'
import type { ShardCache, ShardFile } from './shard-cache.ts'
import type { ShardPeer } from './shard-peer.ts'

/** A shard's bytes where a session can read them; released when it has. */
export type ReadyShard = { source: ShardSource; release(): Promise<void> }

/** Where an expert node gets its shards: the pack on this machine, else its cache, filled from coordinators. */
export class ShardSources {
  readonly #manifest: Manifest
  readonly #pack: PackReader | null
  readonly #cache: ShardCache
  readonly #peers: () => readonly ShardPeer[]
  readonly #shards: ReadonlyMap<string, Manifest['shards'][number]>

  constructor(manifest: Manifest, pack: PackReader | null, cache: ShardCache, peers: () => readonly ShardPeer[]) {
    this.#manifest = manifest
    this.#pack = pack
    this.#cache = cache
    this.#peers = peers
    this.#shards = new Map(manifest.shards.map((shard) => [`${shard.layer}/${shard.expert}`, shard]))
  }

  /** Errors: those of the sources; STARTING where no coordinator is known. */
  async get({ layer, expert }: ShardId): Promise<ReadyShard> {
    const shard = this.#shards.get(`${layer}/${expert}`)
    if (!shard) throw new MoeshError('PACK_INVALID', `${this.#manifest.name} has no shard L${layer}/E${expert}`)
    const { bytes, sha256 } = shard
    if (this.#pack !== null) {
      const source = { layer, expert, path: this.#pack.path(shard.file), offset: shard.offset, bytes }
      return { source, release: async () => {} }
    }
    const file = await this.#fetch(sha256, bytes)
    return { source: { layer, expert, path: file.path, offset: 0, bytes }, release: () => file.release() }
  }

  /** Asks one after the other; what came from one that then failed is kept, and the next goes on behind it. */
  async #fetch(sha256: string, bytes: number): Promise<ShardFile> {
    let last: MoeshError | null = null
    for (const peer of this.#peers()) {
      try {
        return await this.#cache.acquire({ sha256, bytes }, (offset) => peer.fetch(sha256, offset))
      } catch (thrown) {
        last = asMoeshError(thrown)
        if (last.code === 'MEMORY_EXHAUSTED') throw last
      }
    }
    throw last ?? new MoeshError('STARTING', 'no coordinator is there to fetch shards from', 'start one')
  }
}
