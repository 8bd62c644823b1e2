import { createHash, randomUUID } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Server } from '@grpc/grpc-js'
import { HealthImplementation } from 'grpc-health-check'
import { systemClock } from '../cluster/clock.ts'
import { countHeld } from '../cluster/held.ts'
import { createMembership } from '../cluster/membership.ts'
import { noGauges } from '../cluster/node.ts'
import { openRedisStore } from '../cluster/redis-store.ts'
import type { Store } from '../cluster/store.ts'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import { advertisedAddress, openProcessSecurity, randomId } from '../config/identity.ts'
import type { ExpertSettings, RunningProcess } from '../config/process.ts'
import { roleInterceptor, type Security } from '../config/tls.ts'
import { protocolVersion, version } from '../config/version.ts'
import { systemClock as dispatchClock } from '../dispatch/clock.ts'
import { RateLimit } from '../dispatch/rate-limit.ts'
import { addShardService } from '../dispatch/shard-service.ts'
import { connectKubernetes } from '../kubernetes/api.ts'
import { resolveZone } from '../kubernetes/zone.ts'
import { type Manifest, manifestSchema } from '../pack/manifest.ts'
import { openPack, type PackReader } from '../pack/reader.ts'
import { expertNumerics, proveRowInvariance } from '../runtime/canary.ts'
import { claimCpus } from '../runtime/cpus.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import { createStage, removeStage } from '../runtime/stage.ts'
import type { Logger } from '../telemetry/log.ts'
import { addProcessMetrics, Metrics } from '../telemetry/metrics.ts'
import { Assigned } from './assigned.ts'
import { addExpertMetrics } from './expert-metrics.ts'
import { defaultRanks } from './host.ts'
import { LoadGauge, type NodeLoad } from './load-gauge.ts'
import { createLocalHost } from './local-host.ts'
import { Peers } from './peers.ts'
import { addExpertService, expertServerOptions } from './server.ts'
import { ShardCache } from './shard-cache.ts'
import { ShardSources } from './shard-sources.ts'

/** Share of the memory free at start that shards may take where `--memory` says nothing. */
const memoryShare = 0.8
const lookEveryMs = 500
/** Of all shards that a node fetches: most of a 2.5 Gbit/s network, so that rows always have the rest. */
const fetchBytesPerSecond = 256 * 1024 * 1024

/**
 * An expert node: joins the cluster, loads what the placement gives it, computes rows for every coordinator. It keeps no
 * state but a cache of shards, so it may come and go at any time.
 */
export async function startExpertNode(settings: ExpertSettings, log: Logger): Promise<RunningProcess> {
  const id = settings.id ?? randomId()
  const incarnation = randomUUID()
  const leaseMs = settings.lease * 1000
  await using opened = new AsyncDisposableStack()
  const report = (error: Error) => log.error({ error }, 'certificates')
  const security = opened.adopt(await openProcessSecurity(settings, 'expert', report), (it) => it.close())
  const stageDir = opened.adopt(createStage(join(settings.cache, 'stage')), removeStage)
  const tls = settings.store.startsWith('rediss:') ? { tls: security.redisTls() } : {}
  const storeOptions = { url: settings.store, cluster: settings.cluster, ...tls }
  const store = opened.adopt(await openRedisStore(storeOptions), (it) => it.close())
  const peers = new Peers(id, security)
  opened.defer(() => peers.close())

  const model = await findModel(settings, store, peers, { id, incarnation, leaseMs }, log)
  const { manifest } = model
  const { spec, weightFormat: format } = manifest
  const { provider } = settings
  const avoidSaturation = provider === 'cpu' && saturatesInt8(stageDir)
  const numerics = expertNumerics({ stageDir, provider, avoidSaturation, format })
  if (provider !== 'cpu') proveRowInvariance({ stageDir, provider, avoidSaturation, format }, spec)
  const ranks = settings.ranks ?? defaultRanks(provider, settings.cpus)
  const memoryBytes = settings.memory ?? Math.floor(process.availableMemory() * memoryShare)
  const cpus = claimCpus(ranks, settings.cpus)
  let spillDir: string | null = null
  opened.defer(() => {
    if (spillDir !== null) removeStage(spillDir)
  })
  const cache = await ShardCache.open({
    dir: join(settings.cache, 'shards'),
    // Another disk, if the cache's is full.
    spillDir: () => (spillDir ??= createStage(join(tmpdir(), 'moesh-spill'))),
    // What it holds, and as much that it held before: a node that comes back finds most of what it gets again.
    bytesMax: 2 * memoryBytes,
    report: (error) => log.warn({ error }, 'shard cache'),
  })
  const host = opened.adopt(await createLocalHost({ spec, format, ranks, provider, cpus, stageDir }), (it) =>
    it.close(),
  )

  const zone = await resolveZone(
    settings.zone,
    () => connectKubernetes('default'),
    (error) => log.warn({ error }, 'zone'),
  )

  const everybody = ['client', 'coordinator', 'expert'] as const
  const server = new Server({
    ...expertServerOptions,
    interceptors: [
      roleInterceptor(security, {
        'moesh.internal.v1.ExpertService': ['coordinator'],
        'moesh.internal.v1.ShardService': ['coordinator', 'expert'],
        'grpc.health.v1.Health': everybody,
      }),
    ],
  })
  const service = addExpertService(server, {
    host,
    nodeId: id,
    spec,
    format,
    modelDigest: model.digest,
    numerics,
    nowMs: () => performance.now(),
    onProblem: (error) => log.warn({ error }, 'a coordinator was refused'),
  })
  const sources = new ShardSources({
    manifest,
    pack: model.pack,
    cache,
    peers: (shard) => peers.holders(shard),
    limit: new RateLimit(fetchBytesPerSecond, dispatchClock),
    report: (error) => log.warn({ error }, 'a source of shards'),
  })
  addShardService(server, { library: { manifest: () => undefined, find: (sha256) => sources.find(sha256) } })
  const health = new HealthImplementation({ '': 'NOT_SERVING', liveness: 'SERVING' })
  health.addToServer(server)
  const grpc = await listen(server, settings.grpc, security)
  opened.defer(() => server.forceShutdown())

  const gauge = new LoadGauge(ranks, performance.now())
  let load: NodeLoad = { rowsPerSecond: 0, busy: 0, queueMs: 0 }
  const membership = createMembership({
    store,
    self: {
      id,
      incarnation,
      role: 'expert',
      address: advertisedAddress(settings.advertise, grpc),
      zone: zone ?? '',
      memoryBytes,
      ranks,
      provider,
      numerics,
      protocolVersion,
      version,
      modelDigest: model.digest,
    },
    clock: systemClock,
    leaseMs,
    random: Math.random,
    gauges: () => {
      const totals = { ...service.stats(), computedMs: host.computedMs() }
      load = gauge.read(performance.now(), totals)
      return { ...noGauges, ...load }
    },
  })
  const assigned = new Assigned({ nodeId: id, host, store, membership, sources, clock: systemClock, log })
  membership.onChange((_, view) => peers.update(view.nodes.values()))
  await membership.start()
  opened.defer(() => membership.stop())
  assigned.start()
  opened.defer(() => assigned.stop())

  let isDraining = false
  const isServing = () => assigned.isSettled() && !isDraining
  const timer = setInterval(() => health.setStatus('', isServing() ? 'SERVING' : 'NOT_SERVING'), lookEveryMs)
  opened.defer(() => clearInterval(timer))
  const metrics = new Metrics()
  addProcessMetrics(metrics, { version, role: 'expert', id, model: manifest.name })
  addExpertMetrics(metrics, {
    host,
    work: () => service.stats(),
    load: () => load,
    memoryBytes,
    cacheBytes: () => cache.usedBytes(),
  })
  const running = opened.move()
  return {
    id,
    role: 'expert',
    metrics,
    grpc,
    ready: assigned.ready,
    isServing,
    failed: host.failed,
    drain: async (deadline) => {
      isDraining = true
      const had = countHeld(host.held())
      await assigned.leave(deadline)
      const left = countHeld(host.held())
      log.info({ moved: had - left, left }, left === 0 ? 'everything was moved off' : 'not all could be moved off')
      await service.close()
      await running.disposeAsync()
    },
  }
}

type Model = { manifest: Manifest; digest: string; pack: PackReader | null }

/** The pack of this machine, or what the cluster serves: waits until a coordinator is there and says it. */
async function findModel(
  settings: ExpertSettings,
  store: Store,
  peers: Peers,
  self: { id: string; incarnation: string; leaseMs: number },
  log: Logger,
): Promise<Model> {
  if (settings.pack !== null) {
    const pack = openPack(settings.pack)
    return { manifest: pack.manifest, digest: pack.digest, pack }
  }
  let isTold = false
  for (;;) {
    // Not registered yet, so this only looks.
    const seen = await store.beat({ ...self, status: null, gauges: noGauges, cursor: null }).catch(() => null)
    peers.update(seen?.nodes ?? [])
    for (const peer of peers.coordinators()) {
      try {
        const bytes = await peer.manifest(null)
        const manifest = manifestSchema.parse(JSON.parse(Buffer.from(bytes).toString('utf8')))
        return { manifest, digest: createHash('sha256').update(bytes).digest('hex'), pack: null }
      } catch (thrown) {
        log.warn({ error: asMoeshError(thrown), peer: peer.name }, 'no manifest from this coordinator')
      }
    }
    if (!isTold) log.info('waiting for a coordinator that serves a model')
    isTold = true
    await sleep(lookEveryMs)
  }
}

function listen(server: Server, address: string, security: Security): Promise<string> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, security.serverCredentials(), (cause, port) => {
      if (cause === null) return resolve(`${address.slice(0, address.lastIndexOf(':'))}:${port}`)
      const hint = 'is it in use? choose another address with --grpc'
      reject(new MoeshError('ADDRESS_UNAVAILABLE', `cannot listen on ${address}: ${cause.message}`, hint, { cause }))
    })
  })
}
