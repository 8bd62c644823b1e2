import { type ChildProcess, fork } from 'node:child_process'
import { join } from 'node:path'
import { type PeerAnswer, type PeerRequest, peerAnswer } from './peer-process.ts'
import type { Target } from './target.ts'

/** The peer behind its process. */
export class PeerTarget implements Target {
  readonly #child: ChildProcess
  readonly #ended: Promise<never>

  private constructor(child: ChildProcess) {
    this.#child = child
    this.#ended = new Promise((_, reject) => {
      child.once('error', reject)
      child.once('exit', (code, signal) => reject(new Error(`the peer's process ended with ${signal ?? code}`)))
    })
    // Read only while an answer is awaited.
    this.#ended.catch(() => {})
  }

  /** `path`: a GGUF file. */
  static async start(path: string, vocabulary: number, threads: number): Promise<PeerTarget> {
    const child = fork(join(import.meta.dirname, 'peer-process.ts'), [path, String(vocabulary), String(threads)], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    process.once('exit', () => child.kill('SIGKILL'))
    const target = new PeerTarget(child)
    await target.#answer()
    return target
  }

  prefill(rows: number): Promise<number> {
    return this.#ask({ kind: 'prefill', rows })
  }

  decode(sequences: number, context: number, steps: number): Promise<number> {
    return this.#ask({ kind: 'decode', sequences, context, steps })
  }

  async close(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended.catch(() => {})
  }

  async #ask(request: PeerRequest): Promise<number> {
    this.#child.send(request)
    const answer = await this.#answer()
    if (answer.kind !== 'seconds') throw new Error(`the peer answered with "${answer.kind}"`)
    return answer.seconds
  }

  async #answer(): Promise<PeerAnswer> {
    const message = new Promise<unknown>((resolve) => this.#child.once('message', resolve))
    const answer = peerAnswer.parse(await Promise.race([message, this.#ended]))
    if (answer.kind === 'failed') throw new Error(`the peer failed: ${answer.message}`)
    return answer
  }
}
