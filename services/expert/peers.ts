import type { NodeEntry } from '../cluster/node.ts'
import type { Security } from '../config/tls.ts'
import type { ShardId } from './host.ts'
import { connectShardPeer, type ShardPeer } from './shard-peer.ts'

type Entry = { node: NodeEntry; peer: ShardPeer }

/** Connections to all who may have shards: coordinators have each one, expert nodes those that they hold. */
export class Peers {
  readonly #self: string
  readonly #security: Pick<Security, 'dial'>
  readonly #entries = new Map<string, Entry>()

  /** `self`: the own id, which is left out. */
  constructor(self: string, security: Pick<Security, 'dial'>) {
    this.#self = self
    this.#security = security
  }

  coordinators(): ShardPeer[] {
    return this.#peersWhere(({ record }) => record.role === 'coordinator')
  }

  /**
   * Who should have the shard, best first. Expert nodes that hold it come before coordinators, which have tokens to
   * make, and take turns by shard; one whose cache has lost it says so, and the next is asked.
   */
  holders(shard: ShardId): ShardPeer[] {
    const experts = this.#peersWhere((node) => node.record.role === 'expert' && holds(node, shard))
    const first = experts.length === 0 ? 0 : (shard.layer + shard.expert) % experts.length
    return [...experts.slice(first), ...experts.slice(0, first), ...this.coordinators()]
  }

  /** Follows the membership. */
  update(nodes: Iterable<NodeEntry>): void {
    const wanted = new Map([...nodes].map((node) => [node.record.id, node]))
    wanted.delete(this.#self)
    for (const [id, { node, peer }] of this.#entries) {
      const now = wanted.get(id)
      if (now?.record.incarnation === node.record.incarnation && now.record.address === node.record.address) continue
      peer.close()
      this.#entries.delete(id)
    }
    for (const [id, node] of wanted) {
      const peer = this.#entries.get(id)?.peer ?? this.#connect(node)
      this.#entries.set(id, { node, peer })
    }
  }

  close(): void {
    for (const { peer } of this.#entries.values()) peer.close()
    this.#entries.clear()
  }

  #peersWhere(isWanted: (node: NodeEntry) => boolean): ShardPeer[] {
    return [...this.#entries.values()].filter(({ node }) => isWanted(node)).map(({ peer }) => peer)
  }

  /** It costs nothing until something is fetched. */
  #connect({ record: { id, address, role } }: NodeEntry): ShardPeer {
    const { credentials, options } = this.#security.dial(role)
    return connectShardPeer({ name: id, address, credentials, channelOptions: options })
  }
}

/** One bit of the node's status, without unpacking the rest. */
function holds({ status }: NodeEntry, { layer, expert }: ShardId): boolean {
  const byte = Buffer.from(status.held[layer] ?? '', 'base64')[expert >> 3] ?? 0
  return (byte & (1 << (expert & 7))) !== 0
}
