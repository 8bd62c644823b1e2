import { asMoeshError, MoeshError } from '../config/errors.ts'
import type { RateLimit } from '../dispatch/rate-limit.ts'
import type { ShardPlace } from '../dispatch/shard-service.ts'
import type { Manifest, ShardEntry } from '../pack/manifest.ts'
import type { PackReader } from '../pack/reader.ts'
import type { ShardId, ShardSource } from './host.ts'
import { digestOf, type ShardCache, type ShardFile } from './shard-cache.ts'
import type { ShardPeer } from './shard-peer.ts'

/** A shard's bytes where a session can read them; released when it has. */
export type ReadyShard = { source: ShardSource; release(): Promise<void> }

export type ShardSourcesOptions = {
  manifest: Manifest
  /** The pack of this machine, if there is one. */
  pack: PackReader | null
  cache: ShardCache
  /** Who should have the shard, best first. */
  peers: (shard: ShardId) => readonly ShardPeer[]
  /** Of all fetches together. */
  limit: RateLimit
  /** Something was wrong and was dealt with: damaged bytes, a peer that could not deliver. */
  report: (error: MoeshError) => void
}

/**
 * Where an expert node gets its shards: the pack on this machine, else its cache, filled from other nodes. Whatever the
 * way, the bytes were compared with the manifest's digest before a session reads them.
 */
export class ShardSources {
  readonly #options: ShardSourcesOptions
  readonly #shards: ReadonlyMap<string, ShardEntry>
  readonly #byDigest: ReadonlyMap<string, ShardEntry>

  constructor(options: ShardSourcesOptions) {
    this.#options = options
    this.#shards = new Map(options.manifest.shards.map((shard) => [`${shard.layer}/${shard.expert}`, shard]))
    this.#byDigest = new Map(options.manifest.shards.map((shard) => [shard.sha256, shard]))
  }

  /** Errors: those of the peers; STARTING where nobody is known who has it; MEMORY_EXHAUSTED. */
  async get({ layer, expert }: ShardId): Promise<ReadyShard> {
    const shard = this.#shards.get(`${layer}/${expert}`)
    if (!shard) {
      throw new MoeshError('PACK_INVALID', `${this.#options.manifest.name} has no shard L${layer}/E${expert}`)
    }
    const place = this.#inPack(shard)
    if (place && (await this.#isSound(shard, place)))
      return { source: { layer, expert, ...place }, release: async () => {} }
    const file = await this.#fetch(shard)
    return {
      source: { layer, expert, path: file.path, offset: 0, bytes: shard.bytes },
      release: () => file.release(),
    }
  }

  /** For other nodes: where a shard lies here, if it does. What they get is checked by them. */
  find(sha256: string): ShardPlace | undefined {
    const shard = this.#byDigest.get(sha256)
    return (shard && this.#inPack(shard)) ?? this.#options.cache.find(sha256)
  }

  #inPack({ file, offset, bytes }: ShardEntry): ShardPlace | undefined {
    const { pack } = this.#options
    return pack === null ? undefined : { path: pack.path(file), offset, bytes }
  }

  async #isSound({ layer, expert, sha256 }: ShardEntry, place: ShardPlace): Promise<boolean> {
    try {
      if ((await digestOf(place)) === sha256) return true
      const message = `shard L${layer}/E${expert} in ${place.path} does not match its digest`
      this.#options.report(new MoeshError('PACK_DIGEST', message, 'it is fetched from other nodes; verify the pack'))
    } catch (thrown) {
      this.#options.report(asMoeshError(thrown))
    }
    return false
  }

  /** Asks one after the other; what came from one that then failed is kept, and the next goes on behind it. */
  async #fetch({ layer, expert, sha256, bytes }: ShardEntry): Promise<ShardFile> {
    const { cache, peers, report } = this.#options
    let last = new MoeshError('STARTING', 'no node is there to fetch shards from', 'start a coordinator')
    // A cached shard needs nobody.
    const sources = [...peers({ layer, expert }), null]
    for (const peer of sources) {
      try {
        return await cache.acquire({ sha256, bytes }, (offset) => {
          if (peer === null) throw last
          return this.#limited(peer.fetch(sha256, offset))
        })
      } catch (thrown) {
        const error = asMoeshError(thrown)
        if (error.code === 'MEMORY_EXHAUSTED') throw error
        // A node that just let the shard go is no trouble: the next has it.
        if (error !== last && error.code !== 'EXPERT_NOT_HELD') report(error)
        last = error
      }
    }
    throw last
  }

  async *#limited(chunks: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
    for await (const chunk of chunks) {
      await this.#options.limit.pass(chunk.length)
      yield chunk
    }
  }
}
