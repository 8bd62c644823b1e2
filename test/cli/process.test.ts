import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { TestClient } from '../coordinator/client.ts'

/** A process that drains for as long as it is told (`drainMs`), or fails, or never becomes ready. */
const program = (behaviour: string) => `
import { runProcess } from '${join(import.meta.dirname, '../../services/cli/process.ts')}'
import { createLogger } from '${join(import.meta.dirname, '../../services/telemetry/log.ts')}'
const { drainMs = 0, failsMs = null, isStuck = false, startMs = 0, ...options } = ${behaviour}
const log = createLogger({ level: 'info', format: 'json' })
const start = async () => {
  await new Promise((resolve) => setTimeout(resolve, startMs))
  return {
    id: 'n1', role: 'expert', grpc: '127.0.0.1:7',
    ready: isStuck ? new Promise(() => {}) : Promise.resolve(),
    isServing: () => true,
    metrics: { contentType: 'text/plain', text: async () => 'moesh_x 1\\n' },
    failed: new Promise((resolve) => failsMs !== null && setTimeout(() => resolve(new Error('lost')), failsMs)),
    drain: (deadline) => new Promise((resolve) => {
      const timer = setTimeout(resolve, drainMs)
      deadline.addEventListener('abort', () => { clearTimeout(timer); resolve() })
    }),
  }
}
const timer = setInterval(() => {}, 1000)
try {
  process.exit(await runProcess({ drainTimeout: 60, ...options }, log, start))
} catch (error) {
  console.log(error.message)
  process.exit(1)
}
`

let directory: string
let child: ChildProcess
let output: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'moesh-process-'))
})
afterEach(() => {
  child.kill('SIGKILL')
  rmSync(directory, { recursive: true })
})

function run(behaviour: object): Promise<number | null> {
  output = ''
  child = spawn(process.execPath, ['--input-type=module', '-e', program(JSON.stringify(behaviour))])
  child.stdout?.on('data', (data) => {
    output += data
  })
  child.stderr?.on('data', (data) => {
    output += data
  })
  return new Promise((resolve) => child.on('close', resolve))
}

const says = (text: string) => expect.poll(() => output, { timeout: 10_000 }).toContain(text)

test('the ready file appears whole once it can serve, and SIGTERM drains and exits 0', async () => {
  const readyFile = join(directory, 'ready.json')
  const status = run({ readyFile })
  await says('"ready"')
  expect(JSON.parse(readFileSync(readyFile, 'utf8'))).toEqual({
    pid: child.pid,
    id: 'n1',
    role: 'expert',
    grpc: '127.0.0.1:7',
  })
  child.kill('SIGTERM')
  expect(await status).toBe(0)
  expect(output).toContain('drained')
})

test('a second SIGTERM exits at once, a second SIGINT too', async () => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    const status = run({ drainMs: 100_000 })
    await says('"ready"')
    child.kill(signal)
    await says('draining')
    // Two in less time are one that came twice.
    await new Promise((resolve) => setTimeout(resolve, 400))
    child.kill(signal)
    expect(await status).not.toBe(0)
  }
})

test('a drain that takes too long is cut by --drain-timeout', async () => {
  const status = run({ drainMs: 100_000, drainTimeout: 0.1 })
  await says('"ready"')
  child.kill('SIGTERM')
  expect(await status).toBe(0)
})

test('while it is not ready there is no ready file, health says so, and SIGTERM still ends it', async () => {
  const readyFile = join(directory, 'ready.json')
  const status = run({ readyFile, isStuck: true })
  await says('listens on')
  expect(existsSync(readyFile)).toBe(false)
  child.kill('SIGTERM')
  expect(await status).toBe(0)

  const starting = run({ startMs: 100_000, health: '127.0.0.1:0' })
  await says('health checks')
  const client = new TestClient(/"health":"([^"]+)"/.exec(output)?.[1] ?? '')
  await new Promise<void>((resolve, reject) => {
    client.client.waitForReady(Date.now() + 10_000, (error) => (error ? reject(error) : resolve()))
  })
  const check = (service: string) => client.call('grpc.health.v1.Health/Check', { service })
  expect(await check('liveness')).toMatchObject({ status: 'SERVING' })
  expect(await check('')).toMatchObject({ status: 'NOT_SERVING' })
  client.close()
  child.kill('SIGTERM')
  expect(await starting).toBe(0)
})

test('what makes the process fail ends it with 1', async () => {
  const status = run({ failsMs: 10 })
  expect(await status).toBe(1)
  expect(output).toContain('lost')
})
