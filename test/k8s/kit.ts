import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'

const execute = promisify(execFile)

export const repository = resolve(import.meta.dirname, '../..')

/** Starts a real single-node Kubernetes; kept beside the repository, not in it. */
const kit = resolve(repository, '../shared/k8s')

export type Output = { readonly status: number; readonly stdout: string; readonly stderr: string }

/** Thrown where the cluster can't start: the suite is skipped, not failed. */
export class CannotRunHere extends Error {}

/** The environment in which kubectl, helm and buildah find the cluster. */
export async function startCluster(): Promise<NodeJS.ProcessEnv> {
  if (!existsSync(join(kit, 'up.sh'))) throw new CannotRunHere(`${kit} is not there`)
  const up = await run(join(kit, 'up.sh'), [], { env: process.env, isChecked: false, timeoutMs: 300_000 })
  if (up.status === 3) throw new CannotRunHere(up.stderr.trim().split('\n').at(-1) ?? 'unknown reason')
  if (up.status !== 0) throw new Error(`the cluster should have started and did not:\n${up.stderr}`)
  await run(join(import.meta.dirname, 'metrics-server.sh'), [kit], { env: process.env })
  const exported = await run('bash', ['-c', `eval "$(${join(kit, 'env.sh')})" && env -0`], { env: process.env })
  return Object.fromEntries(
    exported.stdout
      .split('\0')
      .filter((line) => line.includes('='))
      .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  )
}

/** A script of the kit, e.g. `fake-gpus.sh`. */
export function kitScript(env: NodeJS.ProcessEnv, script: string, ...args: string[]): Promise<Output> {
  return run(join(kit, script), args, { env, timeoutMs: 900_000 })
}

export type RunOptions = {
  env: NodeJS.ProcessEnv
  isChecked?: boolean
  timeoutMs?: number
  input?: string
  cwd?: string
}

/** Runs a program to its end; a status other than 0 throws with what it said, unless `isChecked` is false. */
export async function run(program: string, args: readonly string[], options: RunOptions): Promise<Output> {
  const { env, isChecked = true, timeoutMs = 120_000, input, cwd = repository } = options
  const running = execute(program, [...args], { env, cwd, timeout: timeoutMs, maxBuffer: 64 * 1024 * 1024 })
  if (input !== undefined) running.child.stdin?.end(input)
  const output = await running.then(
    ({ stdout, stderr }) => ({ status: 0, stdout, stderr }),
    (error: { code?: unknown; stdout?: string; stderr?: string; message: string }) => ({
      status: typeof error.code === 'number' ? error.code : 1,
      stdout: error.stdout ?? '',
      stderr: error.stderr === undefined || error.stderr === '' ? error.message : error.stderr,
    }),
  )
  if (isChecked && output.status !== 0) {
    throw new Error(
      `${program} ${args.join(' ')} ended with ${output.status}:\n${output.stderr}\n${output.stdout}`.slice(0, 8000),
    )
  }
  return output
}

/** Builds the image from the working tree and gives it to the cluster. */
export async function buildImage(env: NodeJS.ProcessEnv, image: string): Promise<{ megabytes: number }> {
  const has = async (name: string) =>
    (await run('buildah', ['images', '-q', name], { env, isChecked: false })).stdout.trim() !== ''
  if (!(await has('docker.io/library/node:24-slim')) || !(await has('docker.io/library/redis:7'))) {
    await kitScript(env, 'base-images.sh', 'debian', 'node', 'redis')
  }
  // Behind a proxy with an authority of its own, the build has to know it as this process does.
  const authority = process.env.NODE_EXTRA_CA_CERTS
  const secret = authority === undefined ? [] : ['--secret', `id=ca,src=${authority}`]
  const build = ['build', '--pull-never', ...secret, '-t', image, '-f', 'deploy/Dockerfile', '.']
  await run('buildah', build, { env, timeoutMs: 900_000 })
  const inspected = await run('buildah', ['images', '--json', `localhost/${image}`], { env })
  const [{ size }] = JSON.parse(inspected.stdout) as [{ size: string }]
  await kitScript(env, 'load-image.sh', '--buildah', `localhost/${image}`)
  await kitScript(env, 'load-image.sh', '--buildah', 'docker.io/library/redis:7')
  return { megabytes: parseSize(size) }
}

function parseSize(text: string): number {
  const [, number = '0', unit = ''] = /^([\d.]+) ?([KMG]?B)/i.exec(text) ?? []
  const factor = { B: 1e-6, KB: 1e-3, MB: 1, GB: 1e3 }[unit.toUpperCase()] ?? 1
  return Number(number) * factor
}

/** A program that runs beside the test until `stop`. */
export function start(program: string, args: readonly string[], env: NodeJS.ProcessEnv) {
  const child = spawn(program, [...args], { env, cwd: repository, stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = new Promise<void>((done) => child.once('exit', () => done()))
  return {
    stop: async () => {
      child.kill('SIGTERM')
      await ended
    },
  }
}
