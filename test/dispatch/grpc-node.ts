import { Server, ServerCredentials } from '@grpc/grpc-js'
import type { MoeshError } from '../../services/config/errors.ts'
import { connectExpertNode, type ExpertConnectionOptions } from '../../services/dispatch/grpc-transport.ts'
import type { ExpertHost } from '../../services/expert/host.ts'
import { addExpertService, type ExpertServiceOptions, expertServerOptions } from '../../services/expert/server.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import { model } from './transport-contract.ts'

export const modelDigest = 'd'.repeat(64)

/** A gRPC server around a host; `port` 0 takes a free one. */
export async function startNode(
  host: Pick<ExpertHost, 'call' | 'ranks'>,
  format: WeightFormat,
  options: Partial<ExpertServiceOptions> = {},
  port = 0,
) {
  const server = new Server(expertServerOptions)
  const problems: MoeshError[] = []
  const service = addExpertService(server, {
    host,
    nodeId: 'node',
    spec: model,
    format,
    modelDigest,
    numerics: 'n1',
    nowMs: () => performance.now(),
    onProblem: (error) => problems.push(error),
    ...options,
  })
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error, given) =>
      error ? reject(error) : resolve(given),
    )
  })
  return {
    address: `127.0.0.1:${bound}`,
    port: bound,
    service,
    problems,
    /** At once, as a killed process does. */
    kill: () => server.forceShutdown(),
  }
}

export function dial(address: string, format: WeightFormat, options: Partial<ExpertConnectionOptions> = {}) {
  return connectExpertNode({
    address,
    nodeId: 'node',
    coordinatorId: 'coordinator',
    spec: model,
    format,
    modelDigest,
    numerics: 'n1',
    ...options,
  })
}
