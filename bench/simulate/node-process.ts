import { Server, ServerCredentials } from '@grpc/grpc-js'
import { z } from 'zod'
import { decodeHeld } from '../../services/cluster/held.ts'
import { heldSchema } from '../../services/cluster/node.ts'
import { LatencyHistogram } from '../../services/dispatch/latency.ts'
import { addExpertService, expertServerOptions } from '../../services/expert/server.ts'
import { weightFormats } from '../../services/model/format.ts'
import { modelSpecSchema } from '../../services/pack/manifest.ts'
import { type DelayProxy, startDelayProxy } from '../delay-proxy.ts'
import { expertCostSchema } from './cost.ts'
import { Sleeper } from './sleeper.ts'
import { SleepingHost } from './sleeping-host.ts'

/**
 * A process with some of the simulated nodes: each has a gRPC server of its own, as in a cluster, around a host that
 * sleeps. It is told what to do by IPC and answers every message with one; it ends with its parent.
 */

const ms = z.number().nonnegative()
const count = z.int().nonnegative()

export const nodeRequest = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('open'),
    nodes: z.array(z.object({ id: z.string(), held: heldSchema })).max(1024),
    spec: modelSpecSchema,
    format: z.enum(weightFormats),
    modelDigest: z.string(),
    numerics: z.string(),
    cost: expertCostSchema,
    /** null: nodes are dialled directly. */
    delay: z.object({ jitterMs: ms, seed: z.int() }).nullable(),
  }),
  z.object({ kind: z.literal('round-trip'), roundTripMs: ms }),
  z.object({ kind: z.literal('stats') }),
])
export type NodeRequest = z.infer<typeof nodeRequest>

/** Since the start, but for `lateMs`: how long after their time the nodes of the process answered lately. */
const nodeStats = z.object({
  cpuMs: ms,
  lateMs: z.object({ p50: ms, p99: ms }),
  nodes: z.array(z.object({ id: z.string(), calls: count, rows: count, computedMs: ms })),
})
export type NodeStats = z.infer<typeof nodeStats>

export const nodeAnswer = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('opened'), addresses: z.array(z.string()) }),
  z.object({ kind: z.literal('done') }),
  z.object({ kind: z.literal('stats'), stats: nodeStats }),
  z.object({ kind: z.literal('failed'), message: z.string() }),
])
export type NodeAnswer = z.infer<typeof nodeAnswer>

type OpenRequest = Extract<NodeRequest, { kind: 'open' }>
type Node = {
  id: string
  host: SleepingHost
  service: ReturnType<typeof addExpertService>
  proxy: DelayProxy | null
  address: string
}

const nodes: Node[] = []
const late = new LatencyHistogram()

async function open(request: OpenRequest): Promise<NodeAnswer> {
  const { spec, format, modelDigest, numerics, cost, delay } = request
  const sleeper = new Sleeper()
  for (const [index, { id, held }] of request.nodes.entries()) {
    const host = new SleepingHost({ cost, sleeper, hidden: spec.hidden, held: decodeHeld(held), late })
    const server = new Server(expertServerOptions)
    const service = addExpertService(server, {
      host,
      nodeId: id,
      spec,
      format,
      modelDigest,
      numerics,
      nowMs: () => performance.now(),
      onProblem: (error) => process.stderr.write(`${id}: ${error.message}\n`),
    })
    const direct = await listen(server)
    const proxy = delay && (await startDelayProxy({ ...delay, roundTripMs: 0, seed: delay.seed + index }))
    proxy?.setTarget(direct)
    nodes.push({ id, host, service, proxy, address: proxy?.address ?? direct })
  }
  return { kind: 'opened', addresses: nodes.map(({ address }) => address) }
}

function listen(server: Server): Promise<string> {
  return new Promise((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(`127.0.0.1:${port}`),
    )
  })
}

function stats(): NodeAnswer {
  const { user, system } = process.cpuUsage()
  return {
    kind: 'stats',
    stats: {
      cpuMs: (user + system) / 1000,
      lateMs: { p50: late.quantileMs(0.5), p99: late.quantileMs(0.99) },
      nodes: nodes.map(({ id, host, service }) => {
        const { calls, rows } = service.stats()
        return { id, calls, rows, computedMs: host.computedMs() }
      }),
    },
  }
}

async function perform(request: NodeRequest): Promise<NodeAnswer> {
  switch (request.kind) {
    case 'open':
      return open(request)
    case 'round-trip':
      for (const { proxy } of nodes) proxy?.setRoundTripMs(request.roundTripMs)
      return { kind: 'done' }
    case 'stats':
      return stats()
  }
}

function answer(message: NodeAnswer): void {
  process.send?.(message)
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit(0))
  process.on('message', (message) => {
    Promise.resolve(message)
      .then((given) => perform(nodeRequest.parse(given)))
      .then(answer, (error) => answer({ kind: 'failed', message: String(error) }))
  })
}
