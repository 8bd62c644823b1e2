import { rename, writeFile } from 'node:fs/promises'
import { MoeshError } from '../config/errors.ts'
import type { FlagName } from '../config/flags.ts'
import type { RunningProcess } from '../config/process.ts'
import { startHealthPort } from '../telemetry/health.ts'
import type { Logger } from '../telemetry/log.ts'
import { startMetricsPort } from '../telemetry/metrics-port.ts'

export type ProcessOptions = {
  health: string | undefined
  metricsListen: string | undefined
  readyFile: string | undefined
  /** Seconds. */
  drainTimeout: number
}

/**
 * A signal to a whole process group comes twice, once from its sender and once from the launcher; so does a terminal's
 * Ctrl-C. Nobody means two in so short a time.
 */
const sameSignalMs = 300

/**
 * Runs a process of the cluster until a signal ends it, and returns its exit status. SIGTERM and SIGINT drain; a second
 * one exits at once, without waiting for anything. Errors: those of `start`, and what made the process fail.
 */
export async function runProcess(
  options: ProcessOptions,
  log: Logger,
  start: () => Promise<RunningProcess>,
  onReady: (running: RunningProcess) => Promise<void> | void = () => {},
): Promise<number> {
  const stopped = firstSignal()
  let running: RunningProcess | null = null
  let isDraining = false
  const isServing = () => running !== null && !isDraining && running.isServing()
  const health = await openPort('health', options.health, (listen) => startHealthPort(listen, isServing))
  if (health !== null) log.info({ health: health.address }, `answers health checks on ${health.address}`)
  const readMetrics = () => running?.metrics ?? null
  const metrics = await openPort('metrics-listen', options.metricsListen, (it) => startMetricsPort(it, readMetrics))
  if (metrics !== null) log.info({ metrics: metrics.address }, `tells its metrics on ${metrics.address}`)

  const started = await Promise.race([start(), stopped])
  // Nothing is served yet that could be drained; what was half done goes on at the next start.
  if (typeof started === 'string') process.exit(0)
  running = started
  const failed = started.failed.then((error) => {
    throw error
  })
  const ready = announce(options, log, started, onReady).then((): 'ready' => 'ready')
  const first = await Promise.race([ready, failed, stopped])
  const signal = first === 'ready' ? await Promise.race([failed, stopped]) : first
  isDraining = true
  log.info({ signal }, 'draining; the same signal again exits at once')
  await started.drain(AbortSignal.timeout(options.drainTimeout * 1000))
  health?.close()
  metrics?.close()
  log.info('drained')
  return 0
}

/** Settles with the first signal; the next one ends the process. */
function firstSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let firstMs: number | null = null
    const onSignal = (signal: NodeJS.Signals) => {
      const nowMs = performance.now()
      if (firstMs === null) {
        firstMs = nowMs
        resolve(signal)
      } else if (nowMs - firstMs > sameSignalMs) {
        // An orderly exit would wait for computing threads, or abort within them.
        process.kill(process.pid, 'SIGKILL')
      }
    }
    process.on('SIGTERM', onSignal)
    process.on('SIGINT', onSignal)
  })
}

type Port = { address: string; close(): void }

async function openPort(
  flag: FlagName,
  listen: string | undefined,
  open: (listen: string) => Promise<Port>,
): Promise<Port | null> {
  if (listen === undefined) return null
  try {
    return await open(listen)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new MoeshError('ADDRESS_UNAVAILABLE', `--${flag}: cannot listen on ${listen}: ${reason}`, 'is it in use?', {
      cause,
    })
  }
}

async function announce(
  { readyFile }: ProcessOptions,
  log: Logger,
  running: RunningProcess,
  onReady: (running: RunningProcess) => Promise<void> | void,
): Promise<void> {
  log.info({ id: running.id, role: running.role, grpc: running.grpc }, `${running.role} listens on ${running.grpc}`)
  await running.ready
  if (readyFile !== undefined) await writeReadyFile(readyFile, running)
  log.info({ id: running.id }, 'ready')
  await onReady(running)
}

/** Atomically: whoever waits for the file never reads half of it. Errors: FILE_UNWRITABLE. */
async function writeReadyFile(file: string, { id, role, grpc }: RunningProcess): Promise<void> {
  const partial = `${file}.${process.pid}.partial`
  try {
    await writeFile(partial, `${JSON.stringify({ pid: process.pid, id, role, grpc })}\n`)
    await rename(partial, file)
  } catch (cause) {
    throw new MoeshError('FILE_UNWRITABLE', `--ready-file: ${file} cannot be written`, 'check its directory', { cause })
  }
}
