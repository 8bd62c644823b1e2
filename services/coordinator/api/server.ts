import { setTimeout as sleep } from 'node:timers/promises'
import { Server } from '@grpc/grpc-js'
import { HealthImplementation } from 'grpc-health-check'
import { MoeshError } from '../../config/errors.ts'
import {
  closeGraceMs,
  keepaliveTimeMs,
  keepaliveTimeoutMs,
  requestBytesMax,
  streamsPerConnectionMax,
} from '../../config/limits.ts'
import { roleInterceptor, type Security, type ServiceRoles } from '../../config/tls.ts'
import type { ClusterView } from '../cluster-view.ts'
import type { Journal } from '../journal.ts'
import { ClusterService } from './cluster.ts'
import type { ReportDefect } from './failure.ts'
import { InferenceService } from './inference.ts'
import type { ServedModels } from './models.ts'
import { profilingHandlers } from './profile.ts'
import { loadProtos, readDescriptorSet, serviceDefinition } from './protos.ts'
import { reflectionHandlers } from './reflection.ts'

const inference = 'moesh.v1.Inference'
const cluster = 'moesh.v1.Cluster'
const profiling = 'moesh.v1.Profiling'
const reflectionServices = ['grpc.reflection.v1.ServerReflection', 'grpc.reflection.v1alpha.ServerReflection'] as const
const everybody = ['client', 'coordinator', 'expert'] as const

/** Reads and writes of health and reflection tell nothing that a certificate of the cluster may not know. */
const publicRoles: ServiceRoles = {
  [inference]: ['client', 'coordinator'],
  [cluster]: ['client', 'coordinator'],
  [profiling]: ['client', 'coordinator'],
  'grpc.health.v1.Health': everybody,
  'grpc.reflection.v1.ServerReflection': everybody,
  'grpc.reflection.v1alpha.ServerReflection': everybody,
}

export type ApiOptions = {
  /** HOST:PORT; port 0 takes a free one. */
  listen: string
  security: Security
  models: ServedModels
  cluster: ClusterView
  journal: Journal
  report: ReportDefect
  /** Services between processes that share the port, with the roles that may call them. */
  internal?: readonly InternalService[]
}

export type InternalService = {
  /** Full name, e.g. `moesh.internal.v1.ShardService`. */
  name: string
  roles: ServiceRoles[string]
  addTo(server: Server): void
}

export type ApiServer = {
  /** HOST:PORT with the port that was taken. */
  address: string
  runningRequests: () => number
  /**
   * What health answers for the whole and for both services, which is also whether Kubernetes sends requests here. The
   * name `liveness` is serving from the start: the process answers.
   */
  setServing(isServing: boolean): void
  /** Refuses new requests, waits for those that run until the deadline, tells the rest to resume elsewhere. */
  drain(deadline: AbortSignal): Promise<void>
  /** At once. */
  close(): void
}

/** The public gRPC server of a coordinator. Errors: ADDRESS_UNAVAILABLE where the address cannot be listened on. */
export async function startApi(options: ApiOptions): Promise<ApiServer> {
  const { security, report } = options
  const internal = options.internal ?? []
  const roles = { ...publicRoles, ...Object.fromEntries(internal.map(({ name, roles }) => [name, roles])) }
  const server = new Server({
    'grpc.max_receive_message_length': requestBytesMax,
    'grpc.max_send_message_length': -1,
    'grpc.max_concurrent_streams': streamsPerConnectionMax,
    'grpc.keepalive_time_ms': keepaliveTimeMs,
    'grpc.keepalive_timeout_ms': keepaliveTimeoutMs,
    interceptors: [roleInterceptor(security, roles)],
  })
  const protos = loadProtos()
  const inferenceService = new InferenceService(options)
  const clusterService = new ClusterService(options.cluster, report)
  server.addService(serviceDefinition(protos, inference), inferenceService.handlers)
  server.addService(serviceDefinition(protos, cluster), clusterService.handlers)
  server.addService(serviceDefinition(protos, profiling), profilingHandlers(options.cluster, report))
  for (const service of internal) service.addTo(server)
  const health = new HealthImplementation({ '': 'NOT_SERVING', liveness: 'SERVING' })
  health.addToServer(server)
  const reflection = reflectionHandlers(readDescriptorSet())
  for (const name of reflectionServices) server.addService(serviceDefinition(protos, name), reflection)

  const setServing = (isServing: boolean) => {
    for (const name of ['', inference, cluster]) health.setStatus(name, isServing ? 'SERVING' : 'NOT_SERVING')
  }
  setServing(false)
  const port = await bind(server, options.listen, security)
  return {
    address: `${options.listen.slice(0, options.listen.lastIndexOf(':'))}:${port}`,
    runningRequests: () => inferenceService.runningCount,
    setServing,
    drain: async (deadline) => {
      setServing(false)
      await inferenceService.drain(deadline)
      clusterService.close()
      // Statuses that are already written leave before their connections close.
      await Promise.race([
        new Promise<void>((resolve) => server.tryShutdown(() => resolve())),
        sleep(closeGraceMs, undefined, { ref: false }),
      ])
      server.forceShutdown()
    },
    close: () => server.forceShutdown(),
  }
}

function bind(server: Server, listen: string, security: Security): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(listen, security.serverCredentials(), (cause, port) => {
      if (cause === null) return resolve(port)
      const hint = 'is it in use? choose another address with --grpc'
      reject(new MoeshError('ADDRESS_UNAVAILABLE', `cannot listen on ${listen}: ${cause.message}`, hint, { cause }))
    })
  })
}
