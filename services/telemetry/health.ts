import { Server, ServerCredentials } from '@grpc/grpc-js'
import { HealthImplementation } from 'grpc-health-check'

/** How often the process is asked whether it can serve: faster than any probe asks us. */
const everyMs = 500

/**
 * A port that answers health checks alone, in the clear: Kubernetes' probes know no TLS, and the health of a process is
 * no secret. `liveness` is serving as long as the process answers, the empty name while it can serve.
 */
export async function startHealthPort(
  listen: string,
  isServing: () => boolean,
): Promise<{ address: string; close(): void }> {
  const server = new Server()
  const health = new HealthImplementation({ '': 'NOT_SERVING', liveness: 'SERVING' })
  health.addToServer(server)
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(listen, ServerCredentials.createInsecure(), (error, port) => {
      if (error) reject(error)
      else resolve(port)
    })
  })
  const timer = setInterval(() => health.setStatus('', isServing() ? 'SERVING' : 'NOT_SERVING'), everyMs)
  return {
    address: `${listen.slice(0, listen.lastIndexOf(':'))}:${port}`,
    close: () => {
      clearInterval(timer)
      server.forceShutdown()
    },
  }
}
