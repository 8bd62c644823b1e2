import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'

/** A process of the product, started by its own command as a user would. */
export type MoeshProcess = {
  /** HOST:PORT that it answers on. */
  grpc: string
  stop(): Promise<void>
}

const root = join(import.meta.dirname, '..')
const readySchema = z.object({ grpc: z.string() })

/** Loading takes seconds; a big model from a cold disk takes longer. */
const readyMs = 10 * 60 * 1000
const pollMs = 50
const stopMs = 20_000
/** What is kept of its log, for the error where it ends too early. */
const logCharsMax = 4000

/** `args`: the command and its flags. Rejects where it ends before it can serve, with the end of its log. */
export async function startMoesh(args: readonly string[]): Promise<MoeshProcess> {
  const started = spawnMoesh(args)
  try {
    return await started.ready
  } catch (error) {
    await started.stop()
    throw error
  }
}

/** The same in two parts: a coordinator is only ready when its expert nodes are there. */
export function spawnMoesh(args: readonly string[]): { ready: Promise<MoeshProcess>; stop(): Promise<void> } {
  const directory = mkdtempSync(join(tmpdir(), 'moesh-bench-run-'))
  const readyFile = join(directory, 'ready.json')
  const child = spawn(
    process.execPath,
    [join(root, 'bin', 'moesh'), ...args, '--ready-file', readyFile, '--log-level', 'warn'],
    { cwd: root, stdio: ['ignore', 'ignore', 'pipe'] },
  )
  let log = ''
  child.stderr.setEncoding('utf8')
  child.stderr.on('data', (text: string) => {
    log = (log + text).slice(-logCharsMax)
  })
  const killWithUs = () => void child.kill('SIGKILL')
  process.once('exit', killWithUs)
  const ended = new Promise<void>((resolve) => {
    child.once('close', () => {
      process.off('exit', killWithUs)
      rmSync(directory, { recursive: true, force: true })
      resolve()
    })
  })
  const stop = async () => {
    child.kill('SIGTERM')
    const isOver = await Promise.race([ended.then(() => true), sleep(stopMs, false, { ref: false })])
    if (!isOver) child.kill('SIGKILL')
    await ended
  }
  const ready = waitUntilReady(child, readyFile, () => `moesh ${args.join(' ')}\n${log}`).then((grpc) => ({
    grpc,
    stop,
  }))
  // Whoever only stops it does not look at `ready` any more.
  ready.catch(() => {})
  return { ready, stop }
}

async function waitUntilReady(child: ChildProcess, readyFile: string, describe: () => string): Promise<string> {
  const untilMs = performance.now() + readyMs
  while (!existsSync(readyFile)) {
    if (child.exitCode !== null || child.signalCode !== null)
      throw new Error(`it ended before it was ready: ${describe()}`)
    if (performance.now() > untilMs) throw new Error(`it was not ready in time: ${describe()}`)
    await sleep(pollMs)
  }
  return readySchema.parse(JSON.parse(readFileSync(readyFile, 'utf8'))).grpc
}
