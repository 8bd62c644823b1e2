import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { MetricsText } from '../config/process.ts'

/** Scrapers are few and ask every some seconds; whoever else finds the port must not tie the process up. */
const connectionsMax = 32
const requestTimeoutMs = 10_000
const headerBytesMax = 8 * 1024

/**
 * A port that answers `GET /metrics` and nothing else, in the clear: it tells of load and nodes, never of requests'
 * content. `metrics` null: the process is still starting.
 */
export async function startMetricsPort(
  listen: string,
  metrics: () => MetricsText | null,
): Promise<{ address: string; close(): void }> {
  const server = createServer(
    { requestTimeout: requestTimeoutMs, maxHeaderSize: headerBytesMax },
    (request, response) => {
      answer(request, response, metrics()).catch(() => response.destroy())
    },
  )
  server.maxConnections = connectionsMax
  const at = listen.lastIndexOf(':')
  const host = listen.slice(0, at)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host: host.replace(/^\[|\]$/g, ''), port: Number(listen.slice(at + 1)) }, resolve)
  })
  // A listening TCP server has an address with a port.
  const { port } = server.address() as AddressInfo
  return {
    address: `${host}:${port}`,
    close: () => {
      server.close()
      server.closeAllConnections()
    },
  }
}

async function answer(request: IncomingMessage, response: ServerResponse, metrics: MetricsText | null): Promise<void> {
  const refuse = (status: number, text: string, headers: Record<string, string> = {}) =>
    response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', ...headers }).end(`${text}\n`)
  if (request.url?.split('?')[0] !== '/metrics') return void refuse(404, 'there is only /metrics')
  if (request.method !== 'GET') return void refuse(405, 'only GET is allowed', { allow: 'GET' })
  if (metrics === null) return void refuse(503, 'starting')
  const text = await metrics.text()
  response.writeHead(200, { 'content-type': metrics.contentType }).end(text)
}
