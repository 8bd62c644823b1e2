import { type ChildProcess, fork } from 'node:child_process'
import { join } from 'node:path'
import { type NodeAnswer, type NodeRequest, type NodeStats, nodeAnswer } from './node-process.ts'

/** A process of simulated nodes, from its parent's side: one request at a time. */
export class NodeGroup {
  readonly #child: ChildProcess
  readonly #ended: Promise<never>
  #turn: Promise<unknown> = Promise.resolve()

  constructor() {
    const child = fork(join(import.meta.dirname, 'node-process.ts'), [], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    this.#child = child
    this.#ended = new Promise((_, reject) => {
      child.once('error', reject)
      child.once('exit', (code, signal) => reject(new Error(`a process of nodes ended with ${signal ?? code}`)))
    })
    // Read only while an answer is awaited.
    this.#ended.catch(() => {})
  }

  async open(request: Omit<Extract<NodeRequest, { kind: 'open' }>, 'kind'>): Promise<string[]> {
    const opened = await this.#ask({ kind: 'open', ...request })
    if (opened.kind !== 'opened') throw unexpected(opened)
    return opened.addresses
  }

  async setRoundTripMs(roundTripMs: number): Promise<void> {
    const done = await this.#ask({ kind: 'round-trip', roundTripMs })
    if (done.kind !== 'done') throw unexpected(done)
  }

  async stats(): Promise<NodeStats> {
    const answer = await this.#ask({ kind: 'stats' })
    if (answer.kind !== 'stats') throw unexpected(answer)
    return answer.stats
  }

  async close(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended.catch(() => {})
  }

  #ask(request: NodeRequest): Promise<NodeAnswer> {
    const turn = this.#turn.then(async () => {
      const message = new Promise<unknown>((resolve) => this.#child.once('message', resolve))
      this.#child.send(request)
      const answer = nodeAnswer.parse(await Promise.race([message, this.#ended]))
      if (answer.kind === 'failed') throw new Error(`a process of nodes failed: ${answer.message}`)
      return answer
    })
    this.#turn = turn.catch(() => {})
    return turn
  }
}

function unexpected({ kind }: NodeAnswer): Error {
  return new Error(`a process of nodes answered with "${kind}"`)
}
