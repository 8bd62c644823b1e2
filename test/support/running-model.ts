import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { kvBytesPerToken } from '../../services/coordinator/capacity.ts'
import type { KvExchange } from '../../services/coordinator/kv-exchange.ts'
import { startModelEngine } from '../../services/coordinator/model-engine.ts'
import type {
  EngineRequest,
  EngineUsage,
  FinishReason,
  OutputOptions,
  SamplingOptions,
  TokenOutput,
} from '../../services/coordinator/request.ts'
import type { RequestCounters } from '../../services/coordinator/request-counters.ts'
import { systemClock } from '../../services/dispatch/clock.ts'
import { createDispatcher } from '../../services/dispatch/dispatcher.ts'
import { connectExpertNode } from '../../services/dispatch/grpc-transport.ts'
import { localTransport } from '../../services/dispatch/local-transport.ts'
import { routeTable } from '../../services/dispatch/route.ts'
import { rowEncoding } from '../../services/dispatch/rows.ts'
import type { ExpertTransport } from '../../services/dispatch/transport.ts'
import type { ExpertHost, Provider } from '../../services/expert/host.ts'
import { createLocalHost } from '../../services/expert/local-host.ts'
import { addExpertService, expertServerOptions } from '../../services/expert/server.ts'
import { moeLayers } from '../../services/model/spec.ts'
import type { PackReader } from '../../services/pack/reader.ts'

/** How a model runs in a test: experts on nodes in this process, reached through shared memory or over gRPC. */
export type Topology = {
  /** `own threads`: the coordinator's threads compute the experts, and there are no nodes. */
  transport: 'shared memory' | 'gRPC' | 'own threads'
  /** Nodes that share the experts, and the ranks of each. */
  nodes: number
  ranks: number
  threads: number
  /** Of the experts; `cpu` if not given. */
  provider?: Provider
  maxBatchTokens?: number
  /** Most tokens that are guessed; none if not given. */
  speculate?: number
  /** Every expert lives on so many nodes. */
  replicas?: number
  /** Of the KV cache. */
  kvTokens?: number
}

export type Result = {
  prompt: TokenOutput[] | null
  /** Per candidate. */
  tokens: TokenOutput[][]
  finishes: FinishReason[]
  usage: EngineUsage
}

export type RunningModel = {
  generate(request: TestRequest): Promise<Result>
  readonly kv: KvExchange
  /** What has become of requests so far. */
  readonly counters: RequestCounters
  close(): Promise<void>
}

export type TestRequest = Pick<EngineRequest, 'promptIds'> & {
  candidates?: number
  sampling?: Partial<SamplingOptions>
  output?: Partial<OutputOptions>
}

const numerics = 'test'
let requestsMade = 0

export async function runModel(pack: PackReader, topology: Topology): Promise<RunningModel> {
  const { spec, weightFormat: format, shards } = pack.manifest
  const stageDir = mkdtempSync(join(tmpdir(), 'moesh-test-'))
  const nodes = await Promise.all(
    Array.from({ length: topology.transport === 'own threads' ? 0 : topology.nodes }, (_, index) =>
      startNode(pack, topology, `node-${index}`, stageDir),
    ),
  )
  const replicas = topology.replicas ?? 1
  await Promise.all(
    nodes.map(({ host }, node) =>
      host.load(
        shards
          .filter(({ expert }) => (node - (expert % nodes.length) + nodes.length) % nodes.length < replicas)
          .map((shard) => ({ ...shard, path: pack.path(shard.file) })),
      ),
    ),
  )
  const dispatcher = createDispatcher({
    hidden: spec.hidden,
    encoding: rowEncoding(format),
    routes: routeTable(
      1,
      moeLayers(spec).map(({ layer, ffn }) => ({ layer, experts: ffn.experts })),
      nodes.flatMap(({ host, transport }) =>
        [...host.held()].flatMap(([layer, experts]) =>
          [...experts].map((expert) => ({ layer, expert, nodeId: transport.nodeId, weight: 1 })),
        ),
      ),
    ),
    transports: new Map(nodes.map(({ transport }) => [transport.nodeId, transport])),
    clock: systemClock,
  })
  const model = await startModelEngine({
    pack,
    experts:
      topology.transport === 'own threads'
        ? { shards: shards.map((shard) => ({ ...shard, path: pack.path(shard.file) })), ranks: topology.ranks }
        : dispatcher,
    threads: topology.threads,
    speculate: topology.speculate ?? 0,
    cpus: 'any',
    stageDir,
    context: undefined,
    maxBatchTokens: topology.maxBatchTokens,
    maxSequences: Math.min(8, topology.maxBatchTokens ?? 8),
    kvMemory: kvBytesPerToken(spec) * (topology.kvTokens ?? 8192),
  })
  return {
    generate: (request) =>
      new Promise((resolve, reject) => {
        const candidates = request.candidates ?? 1
        const result: Result = {
          prompt: null,
          tokens: Array.from({ length: candidates }, () => []),
          finishes: [],
          usage: emptyUsage,
        }
        model.engine.submit(
          {
            id: `test-${requestsMade++}`,
            promptIds: request.promptIds,
            candidates,
            priority: 0,
            cacheSalt: '',
            sampling: { ...greedy, ...request.sampling },
            output: { ...quiet, ...request.output },
          },
          {
            prompt: (tokens) => {
              result.prompt = tokens
            },
            token: (candidate, _, token) => result.tokens[candidate]?.push(token),
            finish: (candidate, reason) => {
              result.finishes[candidate] = reason
            },
            done: (usage) => resolve({ ...result, usage }),
            fail: reject,
          },
        )
      }),
    kv: model.kv,
    counters: model.counters,
    close: async () => {
      await model.close()
      await Promise.all(nodes.map(({ close }) => close()))
      rmSync(stageDir, { recursive: true, force: true })
    },
  }
}

export const greedy: SamplingOptions = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  seed: 1n,
  maxTokens: 8,
  minTokens: 0,
  stopTokenIds: new Set(),
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: new Map(),
}

const quiet: OutputOptions = { logprobs: null, promptLogprobs: null, expertTrace: false, promptExpertTrace: false }

const emptyUsage: EngineUsage = {
  promptTokens: 0,
  cachedTokens: 0,
  outputTokens: 0,
  queueMs: 0,
  timeToFirstTokenMs: 0,
  totalMs: 0,
  retriedDispatches: 0,
}

type Node = { host: ExpertHost; transport: ExpertTransport; close(): Promise<void> }

async function startNode(
  pack: PackReader,
  { transport, ranks, provider = 'cpu' }: Topology,
  nodeId: string,
  stageDir: string,
): Promise<Node> {
  const { spec, weightFormat: format } = pack.manifest
  const host = await createLocalHost({ spec, format, ranks, provider, cpus: null, stageDir })
  if (transport === 'shared memory') {
    return { host, transport: localTransport(nodeId, host), close: () => host.close() }
  }
  const server = new Server(expertServerOptions)
  const common = { nodeId, spec, format, modelDigest: pack.digest, numerics }
  const service = addExpertService(server, { ...common, host, nowMs: () => performance.now() })
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    )
  })
  const connection = connectExpertNode({ ...common, address: `127.0.0.1:${port}`, coordinatorId: 'test' })
  await connection.ready()
  return {
    host,
    transport: connection,
    close: async () => {
      await connection.close()
      await service.close()
      server.forceShutdown()
      await host.close()
    },
  }
}
