import type { ClusterView } from '../cluster/view.ts'
import {
  connectExpertNode,
  type ExpertConnectionOptions,
  type GrpcExpertTransport,
} from '../dispatch/grpc-transport.ts'
import type { ExpertTransport } from '../dispatch/transport.ts'

export type ExpertLinksOptions = Omit<ExpertConnectionOptions, 'address' | 'nodeId' | 'numerics' | 'onState'> & {
  onState?: (nodeId: string, state: ReturnType<GrpcExpertTransport['state']>) => void
}

type Link = { incarnation: string; numerics: string; transport: GrpcExpertTransport }

/** A connection to every expert node of the cluster: opened when a node joins, closed when it is gone. */
export class ExpertLinks {
  readonly #options: ExpertLinksOptions
  readonly #links = new Map<string, Link>()

  constructor(options: ExpertLinksOptions) {
    this.#options = options
  }

  get(nodeId: string): ExpertTransport | undefined {
    return this.#links.get(nodeId)?.transport
  }

  has(nodeId: string): boolean {
    return this.#links.has(nodeId)
  }

  /** Follows the membership; what stays is left alone. */
  update(view: Pick<ClusterView, 'nodes'>): void {
    for (const [nodeId, link] of this.#links) {
      const record = view.nodes.get(nodeId)?.record
      if (record?.role === 'expert' && record.incarnation === link.incarnation) continue
      this.#links.delete(nodeId)
      void link.transport.close()
    }
    for (const [nodeId, { record }] of view.nodes) {
      if (record.role !== 'expert' || this.#links.has(nodeId)) continue
      const { numerics, address, incarnation } = record
      const { onState, ...common } = this.#options
      const transport = connectExpertNode({
        ...common,
        address,
        nodeId,
        numerics,
        ...(onState ? { onState: (state) => onState(nodeId, state) } : {}),
      })
      this.#links.set(nodeId, { incarnation, numerics, transport })
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#links.values()].map(({ transport }) => transport.close()))
    this.#links.clear()
  }
}
