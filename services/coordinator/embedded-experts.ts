import assert from 'node:assert/strict'
import type { ServeSettings } from '../config/process.ts'
import { systemClock } from '../dispatch/clock.ts'
import { createDispatcher, type RoutingDispatcher } from '../dispatch/dispatcher.ts'
import { localTransport } from '../dispatch/local-transport.ts'
import { routeTable } from '../dispatch/route.ts'
import { rowEncoding } from '../dispatch/rows.ts'
import type { ExpertTransport } from '../dispatch/transport.ts'
import type { ExpertHost, ShardSource } from '../expert/host.ts'
import { createLocalHost } from '../expert/local-host.ts'
import { moeLayers } from '../model/spec.ts'
import type { PackReader } from '../pack/reader.ts'
import type { Logger } from '../telemetry/log.ts'
import type { ModelEngine } from './model-engine.ts'

/** The experts of a process that is a whole cluster, as its status and its metrics tell of them. */
export type EmbeddedExperts = Pick<ExpertHost, 'ranks' | 'held' | 'usedBytes' | 'computedMs' | 'runtimeMs'> & {
  /** [experts] rows of each expert of a layer since the start. */
  expertRows(layer: number): Float64Array
  /** Since the start: rows computed, and calls for a layer's rows. */
  work(): { rows: number; calls: number }
  /** Of calls; 0 where there are none. */
  latency(): { p50Ms: number; p99Ms: number }
}

/** Ranks of this process on devices, and the dispatcher that reaches them as in a cluster. */
export type DeviceRanks = { experts: EmbeddedExperts; dispatcher: RoutingDispatcher; close(): Promise<void> }

export const embeddedNodeId = 'local'

export function allShards(pack: PackReader): ShardSource[] {
  return pack.manifest.shards.map((shard) => ({ ...shard, path: pack.path(shard.file) }))
}

export async function startDeviceRanks(
  pack: PackReader,
  ranks: number,
  provider: ServeSettings['provider'],
  stageDir: string,
  log: Logger,
): Promise<DeviceRanks> {
  const { spec, weightFormat: format, shards } = pack.manifest
  const nodeId = embeddedNodeId
  const host = await createLocalHost({ spec, format, ranks, provider, cpus: null, stageDir })
  try {
    await host.load(allShards(pack))
  } catch (error) {
    await host.close()
    throw error
  }
  const dispatcher = createDispatcher({
    hidden: spec.hidden,
    encoding: rowEncoding(format),
    routes: routeTable(
      1,
      moeLayers(spec).map(({ layer, ffn }) => ({ layer, experts: ffn.experts })),
      shards.map(({ layer, expert }) => ({ layer, expert, nodeId, weight: 1 })),
    ),
    transports: new Map<string, ExpertTransport>([[nodeId, localTransport(nodeId, host)]]),
    clock: systemClock,
    onFailure: (node, error) => log.error({ node, error }, 'a dispatch failed'),
  })
  return {
    experts: {
      ranks,
      held: () => host.held(),
      usedBytes: () => host.usedBytes(),
      computedMs: () => host.computedMs(),
      runtimeMs: () => host.runtimeMs(),
      expertRows: (layer) => dispatcher.expertRows(layer),
      work: () => dispatcher.nodeStats(nodeId),
      latency: () => dispatcher.nodeStats(nodeId),
    },
    dispatcher,
    close: async () => {
      dispatcher.close()
      await host.close()
    },
  }
}

/** Experts that the coordinator's own threads compute: there are no calls, only layers. */
export function expertsOfTeam(pack: PackReader, { steps, teamExperts: team }: ModelEngine): EmbeddedExperts {
  assert(team !== null)
  const { spec, shards } = pack.manifest
  const held = new Map<number, Set<number>>()
  for (const { layer, expert } of shards) held.set(layer, (held.get(layer) ?? new Set()).add(expert))
  const layers = [...held.keys()]
  const bytes = shards.reduce((sum, shard) => sum + shard.bytes, 0)
  const rows = (layer: number) => team.expertRows(layer).reduce((sum, count) => sum + count, 0)
  return {
    ranks: team.ranks,
    held: () => held,
    usedBytes: () => bytes,
    computedMs: team.computedMs,
    runtimeMs: team.runtimeMs,
    expertRows: team.expertRows,
    work: () => ({
      rows: layers.reduce((sum, layer) => sum + rows(layer), 0),
      calls: (steps.totals.prefill.steps + steps.totals.decode.steps) * moeLayers(spec).length,
    }),
    latency: () => ({ p50Ms: 0, p99Ms: 0 }),
  }
}
