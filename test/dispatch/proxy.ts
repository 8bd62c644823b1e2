import type { AddressInfo } from 'node:net'
import { connect, createServer, type Socket } from 'node:net'

export type TcpProxy = {
  address: string
  /** Bytes of the given direction are kept back from now on. */
  hold(direction: 'up' | 'down' | 'both'): void
  /** From now on every byte takes so much longer. */
  delay(delayMs: number): void
  /** While on, a bit of every large HTTP/2 data frame that comes back is wrong, as with faulty memory in the node. */
  corrupt(isOn: boolean): void
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
  let isCorrupting = false
  const pipe = (from: Socket, to: Socket, direction: 'up' | 'down') => {
    // Timers of different lengths may fire out of order; each takes the oldest chunk, whichever it was set for.
    const chunks: Buffer[] = []
    let lastDueMs = 0
    const frames = new DataFrames()
    from.on('data', (chunk: Buffer) => {
      if (direction === 'down') frames.pass(chunk, isCorrupting)
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
    corrupt(isOn) {
      isCorrupting = isOn
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

const frameHeaderBytes = 9
const dataFrame = 0
/** Replies with rows are larger than everything else. */
const corruptBytesMin = 200

/** Follows the frames of an HTTP/2 connection through chunks that begin and end anywhere. */
class DataFrames {
  readonly #header: number[] = []
  #bytesLeft = 0
  #frameBytes = 0
  #isTarget = false

  /** Flips a bit, in place, here and there in each large data frame, but for its beginning and end. */
  pass(chunk: Buffer, isCorrupting: boolean): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.#bytesLeft === 0) {
        this.#header.push(chunk[at] ?? 0)
        at += 1
        if (this.#header.length < frameHeaderBytes) continue
        const [high = 0, middle = 0, low = 0, type] = this.#header
        this.#bytesLeft = (high << 16) | (middle << 8) | low
        this.#frameBytes = this.#bytesLeft
        this.#isTarget = type === dataFrame && this.#bytesLeft >= corruptBytesMin
        this.#header.length = 0
        continue
      }
      const bytes = Math.min(this.#bytesLeft, chunk.length - at)
      for (let left = this.#bytesLeft; isCorrupting && this.#isTarget && left > this.#bytesLeft - bytes; left--) {
        const target = at + this.#bytesLeft - left
        const isRow = left > 64 && this.#frameBytes - left > 64
        if (isRow && left % 64 === 0) chunk[target] = (chunk[target] ?? 0) ^ 1
      }
      this.#bytesLeft -= bytes
      at += bytes
    }
  }
}
