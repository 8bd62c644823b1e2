import { join } from 'node:path'
import { openProcessSecurity, randomId } from '../config/identity.ts'
import { journalKeepMs, journalRequestsMax } from '../config/limits.ts'
import type { RunningProcess, ServeSettings } from '../config/process.ts'
import { version } from '../config/version.ts'
import { addExpertMetrics } from '../expert/expert-metrics.ts'
import { defaultRanks } from '../expert/host.ts'
import { LoadGauge } from '../expert/load-gauge.ts'
import { openPack } from '../pack/reader.ts'
import { expertNumerics, proveRowInvariance } from '../runtime/canary.ts'
import { defaultThreads } from '../runtime/cpus.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import { createStage, removeStage } from '../runtime/stage.ts'
import type { Logger } from '../telemetry/log.ts'
import { addProcessMetrics, Metrics } from '../telemetry/metrics.ts'
import { loadTokenizer } from '../tokenizer/tokenizer.ts'
import { startApi } from './api/server.ts'
import { addDispatchMetrics, addPlacementMetrics, addRequestMetrics, addStepMetrics } from './coordinator-metrics.ts'
import { allShards, expertsOfTeam, startDeviceRanks } from './embedded-experts.ts'
import { embeddedView } from './embedded-view.ts'
import { createMemoryJournal } from './journal.ts'
import { fingerprint, startModelEngine } from './model-engine.ts'

/**
 * The embedded form: a coordinator with its experts in the same process. On the CPU the coordinator's threads compute
 * them too, as many threads as there are ranks; devices have a dispatcher as in a cluster, with shared memory where that
 * has gRPC. What a cluster computes must equal it bit for bit.
 */
export async function serve(settings: ServeSettings, log: Logger): Promise<RunningProcess> {
  const { provider } = settings
  const id = settings.id ?? randomId()
  const pack = openPack(settings.pack)
  const { weightFormat: format } = pack.manifest
  // What is open when a later step fails must be closed: a process can't end while ranks compute.
  await using opened = new AsyncDisposableStack()
  const report = (error: Error) => log.error({ error }, 'certificates')
  const security = opened.adopt(await openProcessSecurity(settings, 'coordinator', report), (it) => it.close())
  const stageDir = opened.adopt(createStage(join(settings.cache, 'stage')), removeStage)

  const avoidSaturation = provider === 'cpu' && saturatesInt8(stageDir)
  const expertClass = expertNumerics({ stageDir, provider, avoidSaturation, format })
  if (provider !== 'cpu') proveRowInvariance({ stageDir, provider, avoidSaturation, format }, pack.manifest.spec)
  const threads = settings.threads ?? defaultThreads(settings.cpus)
  const shards = allShards(pack)
  // Threads beyond those that share everything else would have nothing to compute in a dense model.
  const ranks = shards.length === 0 ? threads : (settings.ranks ?? defaultRanks(provider, settings.cpus))
  const devices =
    provider === 'cpu'
      ? null
      : opened.adopt(await startDeviceRanks(pack, ranks, provider, stageDir, log), (it) => it.close())
  const options = {
    ...settings,
    pack,
    experts: devices?.dispatcher ?? { shards, ranks },
    threads,
    stageDir,
  }
  const model = opened.adopt(await startModelEngine(options), (it) => it.close())
  const experts = devices?.experts ?? expertsOfTeam(pack, model)
  const served = {
    manifest: pack.manifest,
    digest: pack.digest,
    fingerprint: fingerprint(pack.digest, model.numerics, expertClass),
    engine: model.engine,
    text: loadTokenizer(pack.dir, pack.manifest),
  }
  const nowMs = () => performance.now()
  const view = { id, threads, settings, pack, model, experts, expertClass }
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
  if (devices !== null) addDispatchMetrics(metrics, devices.dispatcher)
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
  const work = () => ({ ...experts.work(), waitedMs: 0 })
  const load = new LoadGauge(ranks, nowMs())
  addExpertMetrics(metrics, {
    host: experts,
    work,
    load: () => load.read(nowMs(), { ...work(), computedMs: experts.computedMs() }),
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
