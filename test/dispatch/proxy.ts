import type { AddressInfo } from 'node:net'
import { connect, createServer, type Socket } from 'node:net'

export type TcpProxy = {
  address: string
  /** Bytes of the given direction are kept back from now on. */
  hold(direction: 'up' | 'down' | 'both'): void
  /** From now on every byte takes so much longer. */
  delay(delayMs: number): void
  /** Ends `hold`, whose connections lack bytes and are cut. */
  heal(): void
  /** Cuts all connections. */
  cut(): void
  close(): Promise<void>
}

/** A TCP proxy in front of `target`: it delays every byte, and can swallow a direction like a half-open link does. */
export async function startProxy(target: string, delayMs: number): Promise<TcpProxy> {
  const port = Number(target.split(':').at(-1))
  const sockets = new Set<Socket>()
  const held = { up: false, down: false }
  let presentDelayMs = delayMs
  const pipe = (from: Socket, to: Socket, direction: 'up' | 'down') => {
    // Timers of different lengths may fire out of order; each takes the oldest chunk, whichever it was set for.
    const chunks: Buffer[] = []
    let lastDueMs = 0
    from.on('data', (chunk: Buffer) => {
      const nowMs = performance.now()
      lastDueMs = Math.max(lastDueMs, nowMs + presentDelayMs)
      chunks.push(chunk)
      setTimeout(() => {
        const next = chunks.shift()
        if (next && !held[direction] && !to.destroyed) to.write(next)
      }, lastDueMs - nowMs)
    })
    from.on('error', () => to.destroy())
    from.on('close', () => {
      sockets.delete(from)
      setTimeout(() => to.destroy(), presentDelayMs)
    })
  }
  const server = createServer((client) => {
    const upstream = connect(port, '127.0.0.1')
    sockets.add(client).add(upstream)
    client.setNoDelay(true)
    upstream.setNoDelay(true)
    pipe(client, upstream, 'up')
    pipe(upstream, client, 'down')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const cut = () => {
    for (const socket of sockets) socket.destroy()
  }
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    hold(direction) {
      held.up ||= direction !== 'down'
      held.down ||= direction !== 'up'
    },
    delay(ms) {
      presentDelayMs = ms
    },
    heal() {
      held.up = false
      held.down = false
      cut()
    },
    cut,
    async close() {
      cut()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
