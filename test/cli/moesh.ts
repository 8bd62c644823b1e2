import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..', '..')

export type Finished = { status: number | null; stdout: string; stderr: string }

/** Runs commands in a directory of their own, with a cache of their own, and leaves no process behind. */
export class Moesh {
  readonly directory = mkdtempSync(join(tmpdir(), 'moesh-cli-'))
  readonly #children = new Set<ChildProcess>()

  run(...args: string[]): Promise<Finished> {
    return this.#spawn(args).finished
  }

  /** Starts a process and waits for its ready file. */
  async start(
    ...args: string[]
  ): Promise<{ grpc: string; id: string; role: string; stderr: () => string; stop: () => Promise<Finished> }> {
    const file = join(this.directory, `ready-${this.#children.size}-${process.hrtime.bigint()}.json`)
    const { child, finished, output } = this.#spawn([...args, '--grpc', '127.0.0.1:0', '--ready-file', file])
    let failure: Finished | null = null
    void finished.then((result) => {
      failure = result
    })
    while (!existsSync(file)) {
      if (failure !== null) throw new Error(`it did not start: ${JSON.stringify(failure)}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const { grpc, id, role } = JSON.parse(readFileSync(file, 'utf8'))
    const stop = () => {
      child.kill('SIGTERM')
      return finished
    }
    return { grpc, id, role, stderr: () => output.stderr, stop }
  }

  close(): void {
    for (const child of this.#children) child.kill('SIGKILL')
    rmSync(this.directory, { recursive: true, force: true })
  }

  #spawn(args: readonly string[]): {
    child: ChildProcess
    finished: Promise<Finished>
    output: { stdout: string; stderr: string }
  } {
    const child = spawn(process.execPath, [join(root, 'services/cli/main.ts'), ...args], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, XDG_CACHE_HOME: join(this.directory, 'cache') },
    })
    this.#children.add(child)
    const output = { stdout: '', stderr: '' }
    child.stdout?.on('data', (data) => {
      output.stdout += data
    })
    child.stderr?.on('data', (data) => {
      output.stderr += data
    })
    const finished = new Promise<Finished>((resolve) => {
      child.on('close', (status) => {
        this.#children.delete(child)
        resolve({ status, ...output })
      })
    })
    return { child, finished, output }
  }
}
