import { createServer } from 'node:net'
import { thisMachine } from '../services/runtime/cpus.ts'
import { startRedis } from '../test/redis.ts'
import { type DelayProxy, startDelayProxy } from './delay-proxy.ts'
import { spawnMoesh } from './moesh-process.ts'

/** A cluster of processes on this machine: a coordinator and expert nodes of one rank each, and a store. */
export type BenchCluster = {
  /** The coordinator's HOST:PORT. */
  grpc: string
  /** Of everything between coordinator and expert nodes. Rejects where they were not started behind proxies. */
  setRoundTripMs(roundTripMs: number): void
  stop(): Promise<void>
}

export type ClusterOptions = {
  pack: string
  cacheDir: string
  expertNodes: number
  /** The coordinator's own. */
  threads: number
  /** Expert nodes are reached through proxies that can delay. */
  behindProxies: boolean
  /** Flags of the coordinator beside these. */
  coordinatorFlags?: readonly string[]
}

/** A CPU of its own for each node, as far as there are, where threads can be bound. */
function ownCpu(node: number): string[] {
  const { allowed, canBind } = thisMachine()
  const cpu = allowed?.[node % allowed.length]
  return canBind && cpu !== undefined ? ['--cpus', `${cpu}`] : []
}

export async function startCluster(options: ClusterOptions): Promise<BenchCluster> {
  const { pack, cacheDir, expertNodes, threads, behindProxies, coordinatorFlags = [] } = options
  const closers: (() => Promise<void>)[] = []
  const stop = async () => {
    for (const close of closers.toReversed()) await close()
  }
  try {
    const redis = await startRedis()
    closers.push(() => redis.stop())
    const shared = ['--store', redis.url, '--cluster', 'bench', '--model', pack, '--cache', cacheDir]
    const proxies: DelayProxy[] = []
    const nodes = []
    for (let node = 0; node < expertNodes; node++) {
      const listen = `127.0.0.1:${await freePort()}`
      const addresses = ['--grpc', listen]
      if (behindProxies) {
        const proxy = await startDelayProxy({ roundTripMs: 0 })
        closers.push(() => proxy.close())
        proxy.setTarget(listen)
        proxies.push(proxy)
        addresses.push('--advertise', proxy.address)
      }
      nodes.push(
        spawnMoesh(['expert', '--ranks', '1', ...ownCpu(node), '--id', `expert-${node}`, ...addresses, ...shared]),
      )
    }
    const own = ['--threads', `${threads}`, '--grpc', '127.0.0.1:0', ...coordinatorFlags]
    const coordinator = spawnMoesh(['coordinator', ...own, ...shared])
    const processes = [...nodes, coordinator]
    closers.push(async () => {
      await Promise.all(processes.map((process) => process.stop()))
    })
    const { grpc } = await coordinator.ready
    // One that failed explains why the coordinator has to do without it.
    await Promise.all(nodes.map(({ ready }) => ready))
    return {
      grpc,
      setRoundTripMs: (roundTripMs) => {
        if (proxies.length === 0) throw new Error('this cluster has no proxies')
        for (const proxy of proxies) proxy.setRoundTripMs(roundTripMs)
      },
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

/** A proxy must know its target before the target is there. */
async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('no free port')
  return address.port
}
