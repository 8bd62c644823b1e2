import { countHeld } from '../cluster/held.ts'
import { MoeshError } from '../config/errors.ts'
import type { ServeSettings } from '../config/process.ts'
import { version } from '../config/version.ts'
import { moeLayers } from '../model/spec.ts'
import type { PackReader } from '../pack/reader.ts'
import type { ClusterView, ExpertLoadStatus, NodeStatus } from './cluster-view.ts'
import { type EmbeddedExperts, embeddedNodeId } from './embedded-experts.ts'
import type { ModelEngine } from './model-engine.ts'
import { readProfile } from './profile.ts'

export type EmbeddedParts = {
  id: string
  threads: number
  settings: ServeSettings
  pack: PackReader
  model: ModelEngine
  experts: EmbeddedExperts
  expertClass: string
}

/** The cluster that one process is: itself, and its ranks as the only expert node. */
export function embeddedView(parts: EmbeddedParts): ClusterView {
  const { id, settings, pack, model, experts } = parts
  const startedMs = performance.now()
  const only = (what: string) =>
    new MoeshError(
      'NODE_UNKNOWN',
      `${what}: this process is the whole cluster`,
      'start "moesh coordinator" and "moesh expert"',
    )

  const rowsPerSecond = (layer: number, expert: number) =>
    (experts.expertRows(layer)[expert] ?? 0) / Math.max(1, (performance.now() - startedMs) / 1000)
  const expertLoads = (): ExpertLoadStatus[] =>
    pack.manifest.shards.map(({ layer, expert }) => ({
      layer,
      expert,
      rowsPerSecond: rowsPerSecond(layer, expert),
      nodes: [embeddedNodeId],
    }))

  return {
    getStatus: async ({ expertLoad }) => {
      const loads = expertLoads()
      const stats = model.engine.stats()
      const common = {
        state: 'READY',
        zone: settings.zone ?? '',
        provider: settings.provider,
        version,
        reason: '',
      } as const
      const latency = experts.latency()
      const nodes: NodeStatus[] = [
        {
          ...common,
          id,
          role: 'COORDINATOR',
          address: 'this process',
          memoryBytes: 0,
          usedBytes: 0,
          ranks: parts.threads,
          shards: 0,
          provider: 'cpu',
          numerics: model.numerics,
          rowsPerSecond: 0,
          dispatchP50Ms: 0,
          dispatchP99Ms: 0,
        },
      ]
      if (moeLayers(pack.manifest.spec).length > 0) {
        nodes.push({
          ...common,
          id: embeddedNodeId,
          role: 'EXPERT',
          address: 'this process',
          memoryBytes: settings.memory ?? 0,
          usedBytes: experts.usedBytes(),
          ranks: experts.ranks,
          shards: countHeld(experts.held()),
          numerics: parts.expertClass,
          rowsPerSecond: loads.reduce((sum, load) => sum + load.rowsPerSecond, 0),
          dispatchP50Ms: latency.p50Ms,
          dispatchP99Ms: latency.p99Ms,
        })
      }
      return {
        cluster: settings.cluster,
        modelDigest: pack.digest,
        model: pack.manifest.name,
        epoch: 1,
        leader: id,
        nodes,
        minReplicas: 1,
        uncovered: 0,
        underReplicated: 0,
        balancedness: 1,
        store: { kind: 'memory', reachable: true, roundTripMs: 0 },
        experts: expertLoad ? loads : [],
        runningRequests: stats.running,
        queuedRequests: stats.queued,
        tokensPerSecond: stats.tokensPerSecond,
      }
    },
    watchEvents: () => () => {},
    drain: async () => Promise.reject(only('drain')),
    undrain: async () => Promise.reject(only('undrain')),
    rebalance: async () => ({ moves: [], balancednessBefore: 1, balancednessAfter: 1, bytes: 0, epoch: 0 }),
    cancelElsewhere: async () => false,
    getProfile: () => readProfile(id, pack.manifest.spec, model, experts),
  }
}
