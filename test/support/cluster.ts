import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { type Message, TestClient } from '../coordinator/client.ts'
import { startProxy, type TcpProxy } from '../dispatch/proxy.ts'
import { startRedis, type TestRedis } from '../redis.ts'

/**
 * A cluster of real processes on loopback with a Redis of its own. Whatever ends the test process ends them too, and
 * nothing is left in the temporary directory.
 */

export type Finished = { status: number | null; signal: NodeJS.Signals | null }

export type ProcessOptions = {
  /** Flags beside those that the cluster sets. */
  flags?: readonly string[]
  /** Coordinators reach it through a proxy, which can delay, swallow and cut. */
  proxied?: boolean
  environment?: Record<string, string>
}

export type TestClusterOptions = {
  /** Directory of the pack. */
  pack: string
  coordinators?: number
  experts?: number
  minReplicas?: number
  leaseSeconds?: number
  coordinator?: ProcessOptions
  expert?: ProcessOptions
  /** Called with its directories made, before it is started for the first time. */
  beforeExpertStarts?: (expert: ClusterProcess) => void
}

export class ClusterProcess {
  readonly id: string
  readonly role: 'coordinator' | 'expert'
  /** Kept when the process is started again. */
  readonly directory: string
  readonly options: ProcessOptions
  readonly proxy: TcpProxy | null
  readonly port: number
  #child: ChildProcess | null = null
  #finished: Promise<Finished> = Promise.resolve({ status: null, signal: null })
  readonly #command: readonly string[]

  constructor(
    role: 'coordinator' | 'expert',
    id: string,
    directory: string,
    port: number,
    proxy: TcpProxy | null,
    command: readonly string[],
    options: ProcessOptions,
  ) {
    this.role = role
    this.id = id
    this.directory = directory
    this.port = port
    this.proxy = proxy
    this.#command = command
    this.options = options
  }

  get address(): string {
    return `127.0.0.1:${this.port}`
  }

  get isRunning(): boolean {
    return this.#child !== null && this.#child.exitCode === null && this.#child.signalCode === null
  }

  /** It has said that it can serve, and lives. */
  get isServing(): boolean {
    return this.isRunning && existsSync(this.#readyFile)
  }

  get finished(): Promise<Finished> {
    return this.#finished
  }

  get cache(): string {
    return join(this.directory, 'cache')
  }

  get pid(): number {
    return this.#child?.pid ?? 0
  }

  /** Everything that it has logged, of all its lives. */
  log(): string {
    const file = join(this.directory, 'log')
    return existsSync(file) ? readFileSync(file, 'utf8') : ''
  }

  start(): void {
    if (this.isRunning) throw new Error(`${this.id} is running`)
    rmSync(this.#readyFile, { force: true })
    const log = openSync(join(this.directory, 'log'), 'a')
    const command = [join(repository, 'services/cli/main.ts'), ...this.#command, '--ready-file', this.#readyFile]
    const child = spawn(process.execPath, command, {
      cwd: repository,
      stdio: ['ignore', log, log],
      env: { ...process.env, MOESH_LOG_FORMAT: 'json', ...this.options.environment },
    })
    closeSync(log)
    this.#child = child
    living.add(child)
    this.#finished = new Promise((resolve) => {
      child.once('exit', (status, signal) => {
        living.delete(child)
        resolve({ status, signal })
      })
    })
  }

  /** Settles when it says that it can serve. */
  async ready(timeoutMs = 60_000): Promise<void> {
    const what = `${this.id} is ready`
    await until(what, timeoutMs, () => {
      if (!this.isRunning) throw new Error(`${this.id} ended before it was ready:\n${this.log().slice(-2000)}`)
      return existsSync(this.#readyFile)
    }).catch((thrown: Error) => {
      throw new Error(`${thrown.message}\n${this.log().slice(-2000)}`)
    })
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal)
  }

  async kill(): Promise<void> {
    this.signal('SIGKILL')
    await this.finished
  }

  get #readyFile(): string {
    return join(this.directory, 'ready.json')
  }
}

const repository = join(import.meta.dirname, '..', '..')
const living = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of living) child.kill('SIGKILL')
})

const long = z.string().transform(Number)
const statusSchema = z.object({
  epoch: long,
  leader: z.string(),
  min_replicas: z.number(),
  uncovered: z.number(),
  under_replicated: z.number(),
  balancedness: z.number(),
  nodes: z.array(
    z.object({ id: z.string(), role: z.string(), state: z.string(), shards: z.number(), reason: z.string() }),
  ),
  running_requests: z.number(),
})
export type ClusterStatus = z.infer<typeof statusSchema>

export class TestCluster {
  readonly redis: TestRedis
  readonly directory: string
  readonly coordinators: ClusterProcess[] = []
  readonly experts: ClusterProcess[] = []
  readonly #options: TestClusterOptions
  readonly #clients = new Map<string, TestClient>()

  private constructor(options: TestClusterOptions, redis: TestRedis) {
    this.#options = options
    this.redis = redis
    this.directory = mkdtempSync(join(tmpdir(), 'moesh-cluster-'))
  }

  /** Resolves when every expert has its copies and all nodes are ready; at once where no expert nodes are asked for. */
  static async start(options: TestClusterOptions): Promise<TestCluster> {
    const cluster = new TestCluster(options, await startRedis())
    try {
      for (let i = 1; i <= (options.coordinators ?? 1); i++) await cluster.addCoordinator(`c${i}`)
      for (let i = 1; i <= (options.experts ?? 3); i++) await cluster.addExpert(`e${i}`)
      if ((options.experts ?? 3) > 0) await cluster.settled()
      return cluster
    } catch (thrown) {
      await cluster.close()
      throw thrown
    }
  }

  async addCoordinator(id: string, options: ProcessOptions = {}): Promise<ClusterProcess> {
    const { pack, minReplicas = 1, coordinator } = this.#options
    const flags = ['--model', pack, '--min-replicas', `${minReplicas}`, '--threads', '1']
    return this.#add('coordinator', this.coordinators, id, flags, { ...coordinator, ...options })
  }

  async addExpert(id: string, options: ProcessOptions = {}): Promise<ClusterProcess> {
    return this.#add('expert', this.experts, id, ['--ranks', '1'], { ...this.#options.expert, ...options })
  }

  client(coordinator: ClusterProcess): TestClient {
    let client = this.#clients.get(coordinator.address)
    if (!client) {
      client = new TestClient(coordinator.address)
      this.#clients.set(coordinator.address, client)
    }
    return client
  }

  /** After a coordinator was started again under its address: connections to the dead one wait before they try again. */
  forgetClient(coordinator: ClusterProcess): void {
    this.#clients.get(coordinator.address)?.close()
    this.#clients.delete(coordinator.address)
  }

  get pack(): string {
    return this.#options.pack
  }

  /** `layer/expert` of every copy that a node holds. */
  async heldBy(node: string): Promise<Set<string>> {
    const alive = this.coordinators.find(({ isRunning }) => isRunning)
    if (!alive) throw new Error('no coordinator runs')
    const { experts }: Message = await this.client(alive).call('moesh.v1.Cluster/GetStatus', { expert_load: true })
    const mine = experts.filter(({ nodes }: Message) => nodes.includes(node))
    return new Set(mine.map(({ layer, expert }: Message) => `${layer}/${expert}`))
  }

  async status(): Promise<ClusterStatus> {
    const alive = this.coordinators.find(({ isRunning }) => isRunning)
    if (!alive) throw new Error('no coordinator runs')
    return statusSchema.parse(await this.client(alive).call('moesh.v1.Cluster/GetStatus', {}))
  }

  async events(last = 200): Promise<Message[]> {
    const alive = this.coordinators.find(({ isRunning }) => isRunning)
    if (!alive) throw new Error('no coordinator runs')
    const { messages } = await this.client(alive).collect(
      'moesh.v1.Cluster/WatchEvents',
      { last },
      { deadline: Date.now() + 700 },
    )
    return messages
  }

  /** Every process that runs is ready, every expert has its copies, and the target is the active placement. */
  async settled(timeoutMs = 40_000): Promise<ClusterStatus> {
    let last = ''
    let status: ClusterStatus | null = null
    const wanted = [...this.coordinators, ...this.experts].filter(({ isRunning }) => isRunning).map(({ id }) => id)
    await until('the cluster is settled', timeoutMs, async () => {
      const ended = [...this.coordinators, ...this.experts].find(
        ({ id, isRunning }) => wanted.includes(id) && !isRunning,
      )
      if (ended) throw new Error(`${ended.id} has ended`)
      try {
        const seen = await this.status()
        last = JSON.stringify(seen)
        const nodes = new Map(seen.nodes.map((node) => [node.id, node]))
        const isReady = wanted.every((id) => {
          const node = nodes.get(id)
          return node?.state === 'READY' && (node.role === 'COORDINATOR' || node.shards > 0)
        })
        status = seen
        return isReady && seen.epoch > 0 && seen.uncovered === 0 && seen.under_replicated === 0
      } catch (thrown) {
        last = String(thrown)
        return false
      }
    }).catch((thrown: Error) => {
      const logs = [...this.coordinators, ...this.experts].map((each) => `-- ${each.id}\n${each.log().slice(-1500)}`)
      throw new Error(`${thrown.message}: ${last}\n${logs.join('\n')}`)
    })
    if (status === null) throw new Error('no status')
    return status
  }

  /** `beforeRemoval`: when no process runs any more, before the directories go. */
  async close(beforeRemoval: () => void = () => {}): Promise<void> {
    for (const client of this.#clients.values()) client.close()
    for (const each of [...this.experts, ...this.coordinators]) each.signal('SIGCONT')
    await Promise.all([...this.experts, ...this.coordinators].map((each) => (each.isRunning ? each.kill() : null)))
    await Promise.all([...this.experts, ...this.coordinators].map(({ proxy }) => proxy?.close()))
    await this.redis.stop()
    beforeRemoval()
    rmSync(this.directory, { recursive: true, force: true })
  }

  async #add(
    role: 'coordinator' | 'expert',
    list: ClusterProcess[],
    id: string,
    flags: readonly string[],
    options: ProcessOptions,
  ): Promise<ClusterProcess> {
    const directory = mkdtempSync(join(this.directory, `${id}-`))
    const port = await freePort()
    const proxy = options.proxied ? await startProxy(`127.0.0.1:${port}`, 0) : null
    const command = [
      role,
      ...['--id', id, '--grpc', `127.0.0.1:${port}`, '--store', this.redis.url, '--cache', join(directory, 'cache')],
      ...['--lease', `${this.#options.leaseSeconds ?? 3}`],
      ...(proxy ? ['--advertise', proxy.address] : []),
      ...flags,
      ...(options.flags ?? []),
    ]
    const added = new ClusterProcess(role, id, directory, port, proxy, command, options)
    list.push(added)
    if (role === 'expert') this.#options.beforeExpertStarts?.(added)
    added.start()
    return added
  }
}

/** Looks every 20 ms. */
export async function until(
  what: string,
  timeoutMs: number,
  isSo: () => boolean | Promise<boolean>,
  everyMs = 20,
): Promise<number> {
  const startedMs = performance.now()
  for (;;) {
    if (await isSo()) return performance.now() - startedMs
    if (performance.now() - startedMs > timeoutMs) throw new Error(`after ${timeoutMs} ms it is not so that ${what}`)
    await sleep(everyMs)
  }
}

/** Ports of earlier calls are not given again, even before their owners listen. */
const given = new Set<number>()

async function freePort(): Promise<number> {
  for (;;) {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    await new Promise((resolve) => server.close(resolve))
    if (address === null || typeof address === 'string') throw new Error('no free port')
    if (given.has(address.port)) continue
    given.add(address.port)
    return address.port
  }
}
