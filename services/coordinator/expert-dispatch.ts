import type { ChannelCredentials, ChannelOptions } from '@grpc/grpc-js'
import type { Placement } from '../cluster/placement.ts'
import type { Store } from '../cluster/store.ts'
import type { ClusterView } from '../cluster/view.ts'
import type { AuditFinding } from '../dispatch/audit.ts'
import { systemClock } from '../dispatch/clock.ts'
import { createDispatcher, type RoutingDispatcher } from '../dispatch/dispatcher.ts'
import type { RouteTable } from '../dispatch/route.ts'
import { rowEncoding } from '../dispatch/rows.ts'
import type { PackReader } from '../pack/reader.ts'
import type { Logger } from '../telemetry/log.ts'
import { clusterRoutes } from './cluster-routes.ts'
import { ExpertLinks } from './expert-links.ts'
import { FallbackExperts, fallbackNodeId } from './fallback-experts.ts'
import { LateLog } from './late-log.ts'
import { SilentNodes } from './silent-nodes.ts'

export type ExpertDispatchOptions = {
  coordinatorId: string
  pack: PackReader
  layers: readonly { layer: number; experts: number }[]
  /** Of experts that this process computes itself. */
  ownExpertClass: string
  stageDir: string
  dial: { credentials: ChannelCredentials; options: ChannelOptions }
  store: Store
  view: () => ClusterView
  active: () => Placement | null
  /** A node may be gone: whoever plans should look now. */
  onSuspect: () => void
  /** What the process itself holds changed: `follow` has to be called. */
  onOwnExperts: () => void
  log: Logger
  report: (error: unknown) => void
}

const noneHeld = { nodeId: fallbackNodeId, held: new Map<number, ReadonlySet<number>>() }

/** The way of a coordinator's rows to those who compute them: nodes of the cluster, and in need the process itself. */
export class ExpertDispatch {
  readonly dispatcher: RoutingDispatcher
  readonly #options: ExpertDispatchOptions
  readonly #silent: SilentNodes
  readonly #links: ExpertLinks
  readonly #fallback: FallbackExperts
  readonly #lateLog: LateLog
  #suspensions = 0

  constructor(options: ExpertDispatchOptions) {
    this.#options = options
    const { pack, layers, stageDir, dial, log, report } = options
    const { spec, weightFormat: format } = pack.manifest
    this.#silent = new SilentNodes({ clock: systemClock, onSuspect: options.onSuspect })
    this.#links = new ExpertLinks({
      coordinatorId: options.coordinatorId,
      spec,
      format,
      modelDigest: pack.digest,
      credentials: dial.credentials,
      channelOptions: dial.options,
      onState: (nodeId, state) => {
        if (state.kind === 'ready') this.#silent.answers(nodeId)
        // The tries that follow fail for the same reason.
        else if (state.kind === 'lost' && this.#silent.lost(nodeId)) {
          log.warn({ node: nodeId, error: state.reason }, 'the connection to an expert node is lost')
        }
      },
    })
    this.#fallback = new FallbackExperts({ pack, stageDir, onChange: options.onOwnExperts, report })
    this.#lateLog = new LateLog(systemClock, log)
    this.dispatcher = createDispatcher({
      hidden: spec.hidden,
      encoding: rowEncoding(format),
      routes: clusterRoutes(layers, { nodes: new Map(), suspended: new Map() }, null, '', pack.digest, noneHeld),
      transports: {
        get: (nodeId) => (nodeId === fallbackNodeId ? this.#fallback.transport() : this.#links.get(nodeId)),
      },
      clock: systemClock,
      onUncovered: (layer, expert) => {
        if (this.#mayHelp()) this.#fallback.want(layer, expert)
      },
      onNodeLate: (nodeId, isLate, reason) => this.#lateLog.note(nodeId, isLate, reason),
      onFailure: (nodeId, error) => log.debug({ node: nodeId, error }, 'a dispatch is repeated elsewhere'),
      onAudit: (finding) => this.#audited(finding),
      judge: async (layer, expert) => (this.#mayHelp() ? this.#fallback.judge(layer, expert) : null),
      reference: (layer, expert) =>
        this.#fallback.held().get(layer)?.has(expert) ? this.#fallback.transport() : undefined,
    })
  }

  /** Nodes that audits of this coordinator took out. */
  get suspensions(): number {
    return this.#suspensions
  }

  /** The process holds experts itself, until nodes hold them again. */
  get helps(): boolean {
    return this.#fallback.held().size > 0
  }

  /** Nodes to plan around. */
  suspects(): string[] {
    return this.#silent.suspects()
  }

  /** Expert nodes of the cluster that there is no connection to. */
  unlinked(): string[] {
    return [...this.#options.view().nodes]
      .filter(([nodeId, { record }]) => record.role === 'expert' && !this.#links.has(nodeId))
      .map(([nodeId]) => nodeId)
  }

  /** Connects to the nodes that the membership names. */
  connect(): void {
    this.#links.update(this.#options.view())
  }

  /** Routes as membership, placement and own experts want them now. */
  routes(): RouteTable {
    return this.#routesOver(this.#options.view(), { nodeId: fallbackNodeId, held: this.#fallback.held() })
  }

  /** Sends rows along these routes from now on, and returns them. */
  follow(): RouteTable {
    const view = this.#options.view()
    this.#silent.retain((nodeId) => view.nodes.has(nodeId))
    const routes = this.routes()
    this.dispatcher.setRoutes(routes)
    if (this.helps) {
      // Nodes that do not answer hold nothing that would help, whatever they said last.
      const answering = [...view.nodes].filter(([nodeId]) => !this.#isAway(nodeId))
      const live = this.#routesOver({ ...view, nodes: new Map(answering) }, noneHeld)
      this.#fallback.release((layer, expert) => hasCopy(live, layer, expert)).catch(this.#options.report)
    }
    return routes
  }

  async close(): Promise<void> {
    this.dispatcher.close()
    this.#lateLog.close()
    await this.#fallback.close()
    await this.#links.close()
    this.#silent.close()
  }

  #routesOver(view: ClusterView, own: Parameters<typeof clusterRoutes>[5]): RouteTable {
    const { layers, pack } = this.#options
    const active = this.#options.active()
    return clusterRoutes(layers, view, active, active?.numerics ?? '', pack.digest, own)
  }

  /** A class of nodes that computes other bits must not be helped out by this process. */
  #mayHelp(): boolean {
    return this.#options.active()?.numerics === this.#options.ownExpertClass
  }

  #isAway(nodeId: string): boolean {
    return this.#silent.isSilent(nodeId) || this.dispatcher.nodeStats(nodeId).isLate
  }

  #audited(finding: AuditFinding): void {
    const { store, log, report } = this.#options
    const { layer, expert, suspects } = finding
    const text = `rows of expert ${expert} in layer ${layer} differ; suspected: ${suspects.join(', ')}`
    log.error({ finding }, 'an audit found rows that differ')
    const event = { timeUnixMs: Date.now(), kind: 'audit.differs', node: suspects[0] ?? '', text, fields: {} }
    store.appendEvents([event]).catch(report)
    // Where no two agree nobody knows who is wrong; taking all out would only stop the model.
    const [suspect] = suspects
    if (suspects.length === 1 && suspect !== undefined && suspect !== 'coordinator') {
      this.#suspensions += 1
      store.setSuspended(suspect, `an audit found wrong ${text}`.slice(0, 1000)).catch(report)
    }
  }
}

function hasCopy(routes: RouteTable, layer: number, expert: number): boolean {
  const starts = routes.layers.get(layer)?.starts
  return (starts?.[expert + 1] ?? 0) > (starts?.[expert] ?? 0)
}
