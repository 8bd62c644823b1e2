import type { AddressInfo } from 'node:net'
import { connect, createServer, type Socket } from 'node:net'

export type Proxy = {
  address: string
  /** Bytes of the given direction are kept back from now on. */
  hold(direction: 'up' | 'down' | 'both'): void
  /** Cuts all connections. */
  cut(): void
  close(): Promise<void>
}

/** A TCP proxy in front of `target`: it delays every byte, and can swallow a direction like a half-open link does. */
export async function startProxy(target: string, delayMs: number): Promise<Proxy> {
  const port = Number(target.split(':').at(-1))
  const sockets = new Set<Socket>()
  const held = { up: false, down: false }
  const pipe = (from: Socket, to: Socket, direction: 'up' | 'down') => {
    from.on('data', (chunk) => {
      setTimeout(() => {
        if (!held[direction] && !to.destroyed) to.write(chunk)
      }, delayMs)
    })
    from.on('error', () => to.destroy())
    from.on('close', () => {
      sockets.delete(from)
      setTimeout(() => to.destroy(), delayMs)
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
    cut,
    async close() {
      cut()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
