import { connect, createServer, type Socket } from 'node:net'
import { DelayLine } from './delay-line.ts'
import { streamFor, type XorshiftState } from './random.ts'
import { summarise } from './statistics.ts'

export type DelayProxyOptions = {
  /** Of both directions together. */
  roundTripMs: number
  /** At most so much is added to each way, at random. */
  jitterMs?: number
  seed?: number
}

export type DelayProxy = {
  /** HOST:PORT to dial instead of the target. */
  address: string
  /** HOST:PORT; connections made from now on lead there. */
  setTarget(target: string): void
  /** For what is sent from now on. */
  setRoundTripMs(roundTripMs: number): void
  close(): Promise<void>
}

/** What is under way in one direction of one connection; beyond it the sender waits. */
const underWayBytesMax = 64 * 1024 * 1024
/** Timers end some tenths of a millisecond late; what is nearly due goes along with what is. */
const timerMs = 0.2

/**
 * A TCP proxy on loopback that holds every byte for a while: a network between processes of one machine. It may be
 * opened before its target, which can then advertise the proxy's address as its own.
 */
export async function startDelayProxy({ roundTripMs, jitterMs = 0, seed = 1 }: DelayProxyOptions): Promise<DelayProxy> {
  const link: Link = { target: '', ways: split(roundTripMs), jitterMs, random: streamFor(seed, 'delay') }
  const sockets = new Set<Socket>()
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    const { host, port } = hostAndPort(link.target)
    const upstream = connect({ host, port, noDelay: true, allowHalfOpen: true })
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.once('close', () => sockets.delete(socket))
    }
    forward(client, upstream, link, 'up')
    forward(upstream, client, link, 'down')
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const listening = server.address()
  if (listening === null || typeof listening === 'string') throw new Error('the proxy listens on no port')
  return {
    address: `127.0.0.1:${listening.port}`,
    setTarget(target) {
      link.target = target
    },
    setRoundTripMs(ms) {
      link.ways = split(ms)
    },
    async close() {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

type Way = 'up' | 'down'
type Link = { target: string; ways: Record<Way, number>; jitterMs: number; random: XorshiftState }

/** Timers count whole milliseconds: 5 are better made of 3 and 2 than of 2.5 twice. */
function split(roundTripMs: number): Record<Way, number> {
  const up = Math.ceil(roundTripMs / 2)
  return { up, down: roundTripMs - up }
}

/** `null` in the line is the end of the stream, which is delayed like its bytes. */
function forward(from: Socket, to: Socket, link: Link, way: Way): void {
  const line = new DelayLine<Buffer | null>(() => link.ways[way], link.jitterMs, link.random)
  let underWayBytes = 0
  let timer: NodeJS.Timeout | null = null
  const deliver = () => {
    timer = null
    for (const chunk of line.takeDue(performance.now() + timerMs)) {
      if (to.destroyed) return
      if (chunk === null) to.end()
      else to.write(chunk)
      underWayBytes -= chunk?.length ?? 0
    }
    if (underWayBytes < underWayBytesMax) from.resume()
    arm()
  }
  const arm = () => {
    const dueMs = line.nextDueMs()
    if (timer !== null || dueMs === null) return
    timer = setTimeout(deliver, Math.max(0, Math.round(dueMs - performance.now())))
  }
  const send = (chunk: Buffer | null) => {
    // Without a delay it does not even wait for a timer.
    if (link.ways[way] === 0 && link.jitterMs === 0 && line.length === 0) {
      if (chunk === null) to.end()
      else to.write(chunk)
      return
    }
    line.push(chunk, performance.now())
    underWayBytes += chunk?.length ?? 0
    if (underWayBytes >= underWayBytesMax) from.pause()
    arm()
  }
  from.on('data', send)
  from.once('end', () => send(null))
  from.once('error', () => to.destroy())
  from.once('close', (hadError) => {
    if (!hadError) return
    if (timer !== null) clearTimeout(timer)
    to.destroy()
  })
}

function hostAndPort(target: string): { host: string; port: number } {
  const colon = target.lastIndexOf(':')
  return { host: target.slice(0, colon).replace(/^\[(.*)\]$/, '$1'), port: Number(target.slice(colon + 1)) }
}

/** What a request and its answer of `bytes` take through a link of `roundTripMs`, p50: timers are not exact. */
export async function measureRoundTripMs(roundTripMs: number, bytes = 1024, trips = 50): Promise<number> {
  const echo = createServer({ noDelay: true }, (socket) => void socket.pipe(socket))
  await new Promise<void>((resolve) => echo.listen(0, '127.0.0.1', resolve))
  const address = echo.address()
  const proxy = await startDelayProxy({ roundTripMs })
  proxy.setTarget(`127.0.0.1:${typeof address === 'object' ? address?.port : 0}`)
  const { host, port } = hostAndPort(proxy.address)
  const socket = connect({ host, port, noDelay: true })
  let received = 0
  let answered = () => {}
  let failed: (error: Error) => void = () => {}
  socket.on('error', (error) => failed(error))
  socket.on('data', (chunk) => {
    received += chunk.length
    if (received % bytes === 0) answered()
  })
  const payload = Buffer.alloc(bytes)
  const times: number[] = []
  try {
    for (let trip = 0; trip < trips; trip++) {
      const startMs = performance.now()
      await new Promise<void>((resolve, reject) => {
        answered = resolve
        failed = reject
        socket.write(payload)
      })
      times.push(performance.now() - startMs)
    }
  } finally {
    socket.destroy()
    await proxy.close()
    await new Promise((resolve) => echo.close(resolve))
  }
  return summarise(times).median
}
