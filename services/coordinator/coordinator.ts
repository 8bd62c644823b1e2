import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { systemClock } from '../cluster/clock.ts'
import { Controller } from '../cluster/controller.ts'
import { LoadMeter } from '../cluster/load.ts'
import { createMembership } from '../cluster/membership.ts'
import { noGauges } from '../cluster/node.ts'
import { openRedisStore } from '../cluster/redis-store.ts'
import { MoeshError } from '../config/errors.ts'
import { advertisedAddress, openProcessSecurity, randomId } from '../config/identity.ts'
import { journalKeepMs } from '../config/limits.ts'
import type { CoordinatorSettings, RunningProcess } from '../config/process.ts'
import { protocolVersion, version } from '../config/version.ts'
import { addShardService, type ShardLibrary } from '../dispatch/shard-service.ts'
import { connectKubernetes } from '../kubernetes/api.ts'
import { resolveZone } from '../kubernetes/zone.ts'
import { moeLayers } from '../model/spec.ts'
import { shardLayout } from '../model/tensors.ts'
import { manifestName, openPack, type PackReader } from '../pack/reader.ts'
import { expertNumerics } from '../runtime/canary.ts'
import { defaultThreads } from '../runtime/cpus.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import { createStage, removeStage } from '../runtime/stage.ts'
import type { Logger } from '../telemetry/log.ts'
import { addProcessMetrics, Metrics } from '../telemetry/metrics.ts'
import { loadTokenizer } from '../tokenizer/tokenizer.ts'
import { startApi } from './api/server.ts'
import { copiesMissing, coverage } from './cluster-routes.ts'
import {
  addDispatchMetrics,
  addPlacementMetrics,
  addPrefixMetrics,
  addRequestMetrics,
  addStepMetrics,
} from './coordinator-metrics.ts'
import { ExpertDispatch } from './expert-dispatch.ts'
import { createStoreJournal } from './journal.ts'
import { openKubernetes } from './kubernetes.ts'
import { eraOf } from './kv-era.ts'
import { clusterCalls } from './leader-calls.ts'
import { fingerprint, startModelEngine } from './model-engine.ts'
import { connectKvPeer } from './prefixes/kv-peer.ts'
import { addKvService } from './prefixes/kv-service.ts'
import { SharedPrefixes } from './prefixes/shared-prefixes.ts'
import { readProfile } from './profile.ts'
import type { EngineRequest } from './request.ts'
import { SelfCheck } from './self-check.ts'
import { nodeStates, storeView } from './store-view.ts'
import { kvBlockTokens } from './team/kv-cache.ts'

const loadEveryMs = 1000
/** How often an idle coordinator compares what its parts believe. */
const selfCheckEveryMs = 5000
/** A load that was not renewed for so long belongs to a coordinator that is gone. */
const loadKeepMs = 10_000

/**
 * A coordinator of a cluster: computes everything of the model but its routed experts, and sends rows to the nodes that
 * hold those. Coordinators are peers; one of them leads and decides where experts live.
 */
export async function startCoordinator(settings: CoordinatorSettings, log: Logger): Promise<RunningProcess> {
  const id = settings.id ?? randomId()
  const incarnation = randomUUID()
  const leaseMs = settings.lease * 1000
  if (settings.provider !== 'cpu') {
    throw new MoeshError(
      'PROVIDER_UNAVAILABLE',
      `a coordinator's own share runs on the CPU, not on ${settings.provider}`,
      'give --provider to the expert nodes',
    )
  }
  const pack = openPack(settings.pack)
  const { spec, weightFormat: format } = pack.manifest
  const layers = moeLayers(spec).map(({ layer, ffn }) => ({
    layer,
    experts: ffn.experts,
    shardBytes: shardLayout(spec, ffn, format).bytes,
  }))
  await using opened = new AsyncDisposableStack()
  const report = (error: unknown) => log.error({ error }, 'cluster')
  const security = opened.adopt(await openProcessSecurity(settings, 'coordinator', report), (it) => it.close())
  const stageDir = opened.adopt(createStage(join(settings.cache, 'stage')), removeStage)
  const tls = settings.store.startsWith('rediss:') ? { tls: security.redisTls() } : {}
  const storeOptions = { url: settings.store, cluster: settings.cluster, ...tls }
  const store = opened.adopt(await openRedisStore(storeOptions), (it) => it.close())
  const avoidSaturation = saturatesInt8(stageDir)
  // What nodes on CPUs like this one compute; a cluster of GPUs has a class of its own, which the placement names.
  const ownExpertClass = expertNumerics({ stageDir, provider: 'cpu', avoidSaturation, format })

  const experts = new ExpertDispatch({
    coordinatorId: id,
    pack,
    layers,
    ownExpertClass,
    stageDir,
    dial: security.dial('expert'),
    store,
    view: () => membership.view(),
    active: () => controller.active(),
    onSuspect: () => controller.poke(),
    onOwnExperts: () => reroute(),
    log,
    report,
  })
  opened.defer(() => experts.close())
  const { dispatcher } = experts

  const threads = settings.threads ?? defaultThreads(settings.cpus)
  const options = { ...settings, pack, experts: dispatcher, threads, stageDir, sharesKv: true }
  const model = opened.adopt(await startModelEngine(options), (it) => it.close())
  let isServing = false
  const served = () => ({
    manifest: pack.manifest,
    digest: pack.digest,
    fingerprint: fingerprint(pack.digest, model.numerics, numerics() ?? ''),
    engine: model.engine,
    prepare: (request: EngineRequest, signal: AbortSignal) =>
      // One that will be refused must not wait before.
      model.engine.stats().queued < model.engine.limits.queueMax ? prefixes.prepare(request, signal) : null,
    text: tokenizer,
  })
  const tokenizer = loadTokenizer(pack.dir, pack.manifest)
  const kubernetes =
    settings.kubernetes === undefined
      ? null
      : await openKubernetes(settings.kubernetes, {
          store,
          membership: () => membership,
          controller: () => controller,
          leaseMs,
          nowUnixMs: Date.now,
          report,
        })
  const zone = await resolveZone(settings.zone, () => connectKubernetes('default'), report)

  // The address is known when the server listens, and the server needs the membership: it gets it by name.
  const calls = clusterCalls({
    self: id,
    store,
    security,
    membership: () => membership,
    controller: () => controller,
  })
  const journal = createStoreJournal(store, id, journalKeepMs)
  const api = await startApi({
    listen: settings.grpc,
    security,
    models: () => (isServing ? [served()] : []),
    cluster: {
      getStatus: async (request) => {
        const status = await view.getStatus(request)
        return kubernetes?.explain(status) ?? status
      },
      watchEvents: (last, listener) => view.watchEvents(last, listener),
      getProfile: () => readProfile(id, spec, model, null),
      ...calls,
    },
    journal,
    report: (error, method) => log.error({ error, method }, 'a request failed'),
    internal: [
      {
        name: 'moesh.internal.v1.ShardService',
        roles: ['coordinator', 'expert'],
        addTo: (server) => addShardService(server, { library: packLibrary(pack) }),
      },
      {
        name: 'moesh.internal.v1.KvService',
        roles: ['coordinator'],
        addTo: (server) => addKvService(server, { kv: model.kv, era: () => kvEra(), onSent: () => sent.blocks++ }),
      },
    ],
  })
  opened.defer(() => api.close())

  const membership = createMembership({
    store,
    self: {
      id,
      incarnation,
      role: 'coordinator',
      address: advertisedAddress(settings.advertise, api.address),
      zone: zone ?? '',
      memoryBytes: 0,
      ranks: threads,
      provider: 'cpu',
      numerics: model.numerics,
      protocolVersion,
      version,
      modelDigest: pack.digest,
    },
    status: { state: 'ready', reason: '', usedBytes: 0, held: {}, epoch: 0 },
    clock: systemClock,
    leaseMs,
    random: Math.random,
    gauges: () => {
      const { running, queued, tokensPerSecond } = model.engine.stats()
      return { ...noGauges, runningRequests: running, queuedRequests: queued, tokensPerSecond }
    },
  })
  const controller = new Controller({
    store,
    membership,
    self: { id, incarnation },
    leaseMs,
    clock: systemClock,
    nowUnixMs: Date.now,
    modelDigest: pack.digest,
    layers,
    minReplicas: settings.minReplicas,
    preferredNumerics: ownExpertClass,
    suspects: () => new Set([...experts.suspects(), ...(kubernetes?.suspects() ?? [])]),
    onPlacement: () => reroute(),
    report,
  })
  const numerics = (): string | undefined => controller.active()?.numerics
  const viewed = {
    cluster: settings.cluster,
    manifest: pack.manifest,
    digest: pack.digest,
    minReplicas: settings.minReplicas,
    store,
    membership,
    dispatcher,
    active: () => controller.active(),
  }
  const view = storeView({ ...viewed, leaderCalls: calls })

  /** Fingerprint and era: with the same tokens, all that bits of the KV cache depend on. */
  const kvEra = () => `${fingerprint(pack.digest, model.numerics, numerics() ?? '')} ${era}`
  const sent = { blocks: 0 }
  const peerDial = security.dial('coordinator')
  const prefixes = new SharedPrefixes({
    self: id,
    kv: model.kv,
    store,
    coordinators: () =>
      [...membership.view().nodes.values()]
        .filter(({ record: it, status }) => {
          const isAlike = it.modelDigest === pack.digest && it.numerics === model.numerics
          return it.role === 'coordinator' && it.id !== id && isAlike && status.state === 'ready'
        })
        .map(({ record: { id, address } }) => ({ id, address })),
    era: kvEra,
    connect: ({ address }) =>
      connectKvPeer({ address, credentials: peerDial.credentials, channelOptions: peerDial.options }),
    msPerToken: () => {
      // Without what was spent waiting for nodes that were late.
      const { wallMs, dispatchMs, expertMs, rows } = model.steps.totals.prefill
      return rows === 0 ? 1 : (wallMs - dispatchMs + expertMs) / rows
    },
    nowMs: () => performance.now(),
    onFailure: (coordinator, error) => log.debug({ coordinator, error }, 'a cached prefix was not taken over'),
  })
  opened.defer(() => prefixes.close())

  const { promise: ready, resolve: becomeReady } = Promise.withResolvers<void>()
  let era = ''
  const reroute = () => {
    const routes = experts.follow()
    const present = eraOf(membership.view(), numerics())
    if (present !== era) model.engine.beginEra()
    era = present
    if (!isServing && (layers.length === 0 || (numerics() !== undefined && coverage(routes, 1).uncovered === 0))) {
      isServing = true
      api.setServing(true)
      becomeReady()
    }
  }
  membership.onChange((changes) => {
    // A store that came back empty has lost what running requests need to be resumed.
    if (changes.some(({ kind }) => kind === 'generation')) journal.restore().catch(report)
    experts.connect()
    reroute()
  })
  await membership.start()
  opened.defer(() => membership.stop())
  await controller.start()
  opened.defer(() => controller.stop())
  kubernetes?.start()
  opened.defer(() => kubernetes?.close())
  reroute()

  const meter = new LoadMeter(layers)
  const timer = setInterval(() => {
    meter.update(performance.now(), (layer) => dispatcher.expertRows(layer))
    store.publishLoad(id, meter.published(), loadKeepMs).catch(() => {})
    prefixes.announce().catch(() => {})
    // A node that answers again changes nothing that membership would tell of.
    if (experts.helps) reroute()
  }, loadEveryMs)
  opened.defer(() => clearInterval(timer))

  const selfCheck = new SelfCheck()
  const checkTimer = setInterval(() => {
    const { running: requests, queued, kvTokensUsed } = model.engine.stats()
    const found = selfCheck.look({
      requests: requests + queued,
      dispatches: dispatcher.stats().running,
      kvTokensUsed,
      routes: dispatcher.routes(),
      expectedRoutes: experts.routes(),
      unlinked: experts.unlinked(),
    })
    for (const { what, text } of found) {
      log.error({ what, found: text }, 'idle, and parts disagree; repaired')
      if (what === 'dispatches') dispatcher.cancelAll()
      else if (what === 'routes') reroute()
      else if (what === 'links') experts.connect()
    }
  }, selfCheckEveryMs)
  opened.defer(() => clearInterval(checkTimer))

  const metrics = new Metrics()
  addProcessMetrics(metrics, { version, role: 'coordinator', id, model: pack.manifest.name })
  addRequestMetrics(metrics, model)
  addStepMetrics(metrics, model)
  addPrefixMetrics(metrics, () => ({ fetchedTokens: prefixes.fetchedTokens, sentTokens: sent.blocks * kvBlockTokens }))
  addDispatchMetrics(metrics, dispatcher)
  addPlacementMetrics(metrics, () => ({
    epoch: controller.active()?.epoch ?? 0,
    leads: membership.view().leader?.id === id,
    storeReachable: store.health().reachable,
    nodes: nodeStates(viewed),
    uncovered: coverage(dispatcher.routes(), 1).uncovered,
    copiesMissing: copiesMissing(dispatcher.routes(), settings.minReplicas),
    suspensions: experts.suspensions,
  }))

  const running = opened.move()
  return {
    id,
    role: 'coordinator',
    metrics,
    grpc: api.address,
    ready,
    isServing: () => isServing,
    failed: new Promise(() => {}),
    drain: async (deadline) => {
      await api.drain(deadline)
      await running.disposeAsync()
    },
  }
}

/** Manifest and shards of a pack, for expert nodes that have neither. */
function packLibrary(pack: PackReader): ShardLibrary {
  const manifest = readFileSync(pack.path(manifestName))
  const byDigest = new Map(pack.manifest.shards.map((shard) => [shard.sha256, shard]))
  return {
    manifest: (modelDigest) => (modelDigest === null || modelDigest === pack.digest ? manifest : undefined),
    find: (sha256) => {
      const shard = byDigest.get(sha256)
      return shard && { path: pack.path(shard.file), offset: shard.offset, bytes: shard.bytes }
    },
  }
}
