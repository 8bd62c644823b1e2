import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { openProcessSecurity, randomId } from '../config/identity.ts'
import { journalKeepMs, journalRequestsMax } from '../config/limits.ts'
import type { RunningProcess, ServeSettings } from '../config/process.ts'
import { version } from '../config/version.ts'
import { systemClock } from '../dispatch/clock.ts'
import { createDispatcher } from '../dispatch/dispatcher.ts'
import { localTransport } from '../dispatch/local-transport.ts'
import { routeTable } from '../dispatch/route.ts'
import { rowEncoding } from '../dispatch/rows.ts'
import type { ExpertTransport } from '../dispatch/transport.ts'
import { addExpertMetrics } from '../expert/expert-metrics.ts'
import { LoadGauge } from '../expert/load-gauge.ts'
import { createLocalHost } from '../expert/local-host.ts'
import { moeLayers } from '../model/spec.ts'
import { openPack } from '../pack/reader.ts'
import { expertNumerics } from '../runtime/canary.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import { createStage, removeStage } from '../runtime/stage.ts'
import type { Logger } from '../telemetry/log.ts'
import { addProcessMetrics, Metrics } from '../telemetry/metrics.ts'
import { loadTokenizer } from '../tokenizer/tokenizer.ts'
import { startApi } from './api/server.ts'
import { addDispatchMetrics, addPlacementMetrics, addRequestMetrics, addStepMetrics } from './coordinator-metrics.ts'
import { embeddedView } from './embedded-view.ts'
import { createMemoryJournal } from './journal.ts'
import { fingerprint, startModelEngine } from './model-engine.ts'

/**
 * The embedded form: a coordinator with its experts on threads of the same process. The same engine, dispatcher and
 * ranks as in a cluster, with shared memory where a cluster has gRPC; what a cluster computes must equal it bit for bit.
 */
export async function serve(settings: ServeSettings, log: Logger): Promise<RunningProcess> {
  const { provider } = settings
  const id = settings.id ?? randomId()
  const pack = openPack(settings.pack)
  const { spec, weightFormat: format } = pack.manifest
  // What is open when a later step fails must be closed: a process can't end while ranks compute.
  await using opened = new AsyncDisposableStack()
  const report = (error: Error) => log.error({ error }, 'certificates')
  const security = opened.adopt(await openProcessSecurity(settings, 'coordinator', report), (it) => it.close())
  const stageDir = opened.adopt(createStage(join(settings.cache, 'stage')), removeStage)

  const avoidSaturation = provider === 'cpu' && saturatesInt8(stageDir)
  const expertClass = expertNumerics({ stageDir, provider, avoidSaturation, format })
  const ranks = settings.ranks ?? availableParallelism()
  const host = opened.adopt(await createLocalHost({ spec, format, ranks, provider, stageDir }), (it) => it.close())
  await host.load(pack.manifest.shards.map((shard) => ({ ...shard, path: pack.path(shard.file) })))
  const nodeId = 'local'
  const dispatcher = createDispatcher({
    hidden: spec.hidden,
    encoding: rowEncoding(format),
    routes: routeTable(
      1,
      moeLayers(spec).map(({ layer, ffn }) => ({ layer, experts: ffn.experts })),
      pack.manifest.shards.map(({ layer, expert }) => ({ layer, expert, nodeId, weight: 1 })),
    ),
    transports: new Map<string, ExpertTransport>([[nodeId, localTransport(nodeId, host)]]),
    clock: systemClock,
    onFailure: (node, error) => log.error({ node, error }, 'a dispatch failed'),
  })
  opened.defer(() => dispatcher.close())

  const threads = settings.threads ?? availableParallelism()
  const options = { ...settings, pack, dispatcher, threads, stageDir }
  const model = opened.adopt(await startModelEngine(options), (it) => it.close())
  const served = {
    manifest: pack.manifest,
    digest: pack.digest,
    fingerprint: fingerprint(pack.digest, model.numerics, expertClass),
    engine: model.engine,
    text: loadTokenizer(pack.dir, pack.manifest),
  }
  const nowMs = () => performance.now()
  const view = { id, nodeId, threads, settings, pack, model, host, dispatcher, expertClass }
  const api = await startApi({
    listen: settings.grpc,
    security,
    models: () => [served],
    cluster: embeddedView(view),
    journal: createMemoryJournal({ keepMs: journalKeepMs, requestsMax: journalRequestsMax, nowMs }),
    report: (error, method) => log.error({ error, method }, 'a request failed'),
  })
  api.setServing(true)
  const metrics = new Metrics()
  addProcessMetrics(metrics, { version, role: 'serve', id, model: pack.manifest.name })
  addRequestMetrics(metrics, model)
  addStepMetrics(metrics, model)
  addDispatchMetrics(metrics, dispatcher)
  addPlacementMetrics(metrics, () => ({
    epoch: 1,
    leads: true,
    storeReachable: true,
    nodes: [
      { role: 'COORDINATOR', state: 'READY' },
      { role: 'EXPERT', state: 'READY' },
    ],
    uncovered: 0,
    copiesMissing: 0,
    suspensions: 0,
  }))
  // Calls are made from this process's own queue: they wait for nothing else here.
  const work = () => ({ ...dispatcher.nodeStats(nodeId), waitedMs: 0 })
  const load = new LoadGauge(ranks, nowMs())
  addExpertMetrics(metrics, {
    host,
    work,
    load: () => load.read(nowMs(), { ...work(), computedMs: host.computedMs() }),
    memoryBytes: settings.memory ?? 0,
    cacheBytes: null,
  })

  const running = opened.move()
  return {
    id,
    role: 'coordinator',
    metrics,
    grpc: api.address,
    ready: Promise.resolve(),
    isServing: () => true,
    failed: new Promise(() => {}),
    drain: async (deadline) => {
      await api.drain(deadline)
      await running.disposeAsync()
    },
  }
}
