import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/**
 * A real Redis for tests: from the path, else the Debian package where it may be installed. Each has a free port on
 * loopback and a directory of its own.
 */
export type TestRedis = {
  readonly port: number
  readonly url: string
  readonly pid: number
  /** SIGKILL; what was stored is gone. */
  kill(): Promise<void>
  /** After `kill`: an empty one on the same port. */
  restart(): Promise<void>
  /** SIGSTOP and SIGCONT: it stops to answer, and goes on. */
  pause(): void
  resume(): void
  stop(): Promise<void>
}

/** The server's command, or null where there is none and none can be installed: then say so, and skip. */
export function redisCommand(): string | null {
  found ??= find() ?? (install() ? find() : null)
  if (found === null) process.stderr.write(`\n!!! ${skipNotice} !!!\n`)
  return found
}

export const skipNotice =
  'SKIPPED: tests against a real Redis; put redis-server or valkey-server on the path, or run as root on Debian or Ubuntu'

let found: string | null = null

function find(): string | null {
  for (const command of ['redis-server', 'valkey-server']) {
    try {
      execFileSync(command, ['--version'], { stdio: 'ignore' })
      return command
    } catch {
      // The next one.
    }
  }
  return null
}

function install(): boolean {
  if (process.getuid?.() !== 0) return false
  // RUNLEVEL 1: the package must not start a server of its own.
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive', RUNLEVEL: '1' }
  const apt = (...args: string[]) => execFileSync('apt-get', args, { env, stdio: 'ignore', timeout: 180_000 })
  try {
    apt('install', '-y', '--no-install-recommends', 'redis-server')
    return true
  } catch {
    // Perhaps the lists are missing.
  }
  try {
    apt('update')
    apt('install', '-y', '--no-install-recommends', 'redis-server')
    return true
  } catch {
    return false
  }
}

/** `settings`: further ones of the server, e.g. `['--requirepass', 'secret']`. */
export async function startRedis(settings: readonly string[] = []): Promise<TestRedis> {
  return start((directory) => ['--dir', directory, '--save', '', '--appendonly', 'no', ...settings])
}

/** A Sentinel that watches the master `main` at `masterPort`. */
export async function startSentinel(masterPort: number): Promise<TestRedis> {
  return start((directory) => {
    const file = join(directory, 'sentinel.conf')
    writeFileSync(file, `sentinel monitor main 127.0.0.1 ${masterPort} 1\n`)
    return [file, '--sentinel']
  })
}

async function start(settingsIn: (directory: string) => string[]): Promise<TestRedis> {
  const command = redisCommand()
  if (command === null) throw new Error(skipNotice)
  const directory = mkdtempSync(join(tmpdir(), 'moesh-redis-'))
  const port = await freePort()
  const settings = [...settingsIn(directory), '--port', `${port}`, '--bind', '127.0.0.1']
  let child = await spawnRedis(command, settings)
  const kill = async () => {
    const isOver = ended(child)
    child.kill('SIGKILL')
    await isOver
  }
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    get pid() {
      return child.pid ?? 0
    },
    kill,
    restart: async () => {
      child = await spawnRedis(command, settings)
    },
    pause: () => void child.kill('SIGSTOP'),
    resume: () => void child.kill('SIGCONT'),
    stop: async () => {
      await kill()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

async function spawnRedis(command: string, settings: readonly string[]): Promise<ChildProcess> {
  const child = spawn(command, settings, { stdio: ['ignore', 'pipe', 'ignore'] })
  // A test process that ends without `stop` takes its server along.
  process.once('exit', () => child.kill('SIGKILL'))
  await new Promise<void>((resolve, reject) => {
    let output = ''
    child.stdout.setEncoding('utf8')
    child.stdout.on('data', (chunk: string) => {
      output += chunk
      if (output.includes('Ready to accept connections') || output.includes('Sentinel ID')) resolve()
    })
    child.once('error', reject)
    child.once('exit', () => reject(new Error(`${command} ended at once:\n${output}`)))
  })
  return child
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve()
  return new Promise((resolve) => child.once('exit', () => resolve()))
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('no free port')
  return address.port
}
