import { Worker } from 'node:worker_threads'
import { MoeshError } from '../../config/errors.ts'
import type { ShardSource } from '../../expert/host.ts'
import type { WeightFormat } from '../../model/format.ts'
import type { ModelSpec } from '../../model/spec.ts'
import type { TensorEntry } from '../../pack/manifest.ts'
import { announce, Barrier, changed } from '../../runtime/signal.ts'
import type { Item } from './attention.ts'
import {
  commands,
  controlWords,
  createStepBuffers,
  headWords,
  itemWords,
  type StepBuffers,
  type TeamLimits,
  teamSize,
} from './layout.ts'
import { shareExperts } from './own-experts.ts'
import type { FromThread, ThreadSetup, ToThread } from './team-protocol.ts'

export type TeamOptions = {
  spec: ModelSpec
  format: WeightFormat
  pack: { dir: string; tensors: readonly TensorEntry[] }
  limits: TeamLimits
  /** Where session files are staged. */
  stageDir: string
  avoidSaturation: boolean
  /** Those that threads are bound to; null: none. */
  cpus: readonly number[] | null
  /** All experts, for the first `limits.ranks` threads to compute; empty where that is 0, see `run`. */
  shards: readonly ShardSource[]
}

/** What is asked of one row of a head slice: see `headWords`. */
export type HeadRow = { row: number; slot: number; target: number; position: number; top: number }

/**
 * The threads that compute a coordinator's own share of the model: everything but routed experts, and those too where it
 * was given them. One command at a time; the thread that calls it only waits.
 */
export class Team {
  readonly buffers: StepBuffers
  readonly #threads: Worker[]
  readonly #barrier: Barrier
  #lastError = ''
  #lost: Error | null = null

  private constructor(options: TeamOptions) {
    const { spec, format, limits, shards } = options
    this.buffers = createStepBuffers(spec, format, limits)
    const size = teamSize(limits)
    this.#barrier = new Barrier(this.buffers.control, controlWords.barrier, size, 0)
    const shares = limits.ranks > 0 ? shareExperts(spec, shards, limits.ranks) : []
    this.#threads = Array.from({ length: size }, (_, thread) => {
      const shards = shares[thread] ?? []
      const cpu = options.cpus?.[thread] ?? null
      const workerData: ThreadSetup = { ...options, thread, cpu, buffers: this.buffers, shards }
      return new Worker(new URL('./team-worker.ts', import.meta.url), { workerData })
    })
  }

  /** Resolves when all threads have loaded their weights. */
  static async start(options: TeamOptions): Promise<Team> {
    const team = new Team(options)
    try {
      await Promise.all(team.#threads.map((worker) => team.#loaded(worker)))
      return team
    } catch (thrown) {
      await Promise.all(team.#threads.map((worker) => worker.terminate()))
      throw thrown
    }
  }

  #loaded(worker: Worker): Promise<void> {
    return new Promise((resolve, reject) => {
      worker.on('message', (message: FromThread) => {
        if (message.kind === 'ready') resolve()
        else {
          this.#lastError = message.message
          reject(new MoeshError(message.code, message.message))
        }
      })
      worker.on('error', (error) => {
        this.#lose(error)
        reject(error)
      })
      worker.on('exit', () => {
        const ended = new MoeshError('INTERNAL', 'a computing thread has ended')
        this.#lose(ended)
        reject(ended)
      })
    })
  }

  /** To every thread; in effect from the next command on. */
  tell(message: ToThread): void {
    for (const worker of this.#threads) worker.postMessage(message)
  }

  /** The rows of the next step, and those of them whose head is to follow its last layer at once. */
  setStep(items: readonly Item[], rows: number, head: readonly HeadRow[]): void {
    const { control, items: shared } = this.buffers
    items.forEach(({ slot, start, count, row }, index) => {
      const at = index * itemWords.size
      shared[at + itemWords.slot] = slot
      shared[at + itemWords.start] = start
      shared[at + itemWords.count] = count
      shared[at + itemWords.row] = row
    })
    control[controlWords.items] = items.length
    control[controlWords.rows] = rows
    control[controlWords.headFollows] = head.length > 0 ? 1 : 0
    this.#setHead(head)
  }

  /**
   * Runs the step from a layer on; resolves with the layer whose experts are needed, or the number of layers. A team that
   * computes experts itself goes on to the end, or, with `pauses`, to the next layer whose experts have computed.
   */
  async run(from: number, pauses = false): Promise<number> {
    this.buffers.control[controlWords.pauses] = pauses ? 1 : 0
    await this.#command(commands.run, from)
    return this.buffers.control[controlWords.stoppedAt] ?? 0
  }

  /** Logits of some rows of the step, and what follows from them, into the result buffers. */
  async head(rows: readonly HeadRow[]): Promise<void> {
    this.#setHead(rows)
    await this.#command(commands.head, 0)
  }

  /** Copies a block of the KV cache into `buffers.kvBlock`, or from there. Between steps. */
  async moveBlock(block: number, direction: 'out' | 'in'): Promise<void> {
    await this.#command(direction === 'out' ? commands.blockOut : commands.blockIn, block)
  }

  #setHead(rows: readonly HeadRow[]): void {
    const { control, head } = this.buffers
    rows.forEach(({ row, slot, target, position, top }, index) => {
      const at = index * headWords.size
      head[at + headWords.row] = row
      head[at + headWords.slot] = slot
      head[at + headWords.target] = target
      head[at + headWords.position] = position
      head[at + headWords.top] = top
    })
    control[controlWords.headRows] = rows.length
  }

  async close(): Promise<void> {
    const exits = this.#threads.map((worker) => new Promise<void>((resolve) => worker.once('exit', () => resolve())))
    const { control } = this.buffers
    if (this.#lost === null) {
      Atomics.store(control, controlWords.command, commands.close)
      announce(control, controlWords.go)
      await Promise.all(exits)
    }
  }

  async #command(command: number, argument: number): Promise<void> {
    if (this.#lost) throw this.#lost
    const { control } = this.buffers
    Atomics.store(control, controlWords.command, command)
    Atomics.store(control, controlWords.argument, argument)
    Atomics.store(control, controlWords.finished, 0)
    const before = Atomics.load(control, controlWords.done)
    announce(control, controlWords.go)
    await changed(control, controlWords.done, before)
    if (this.#lost) throw this.#lost
    if (Atomics.exchange(control, controlWords.failed, 0) !== 0) {
      this.#barrier.mend()
      // The message that says why may still be on its way.
      await new Promise(setImmediate)
      throw new MoeshError('INTERNAL', `a computing thread failed: ${this.#lastError}`)
    }
  }

  #lose(error: Error): void {
    this.#lost ??= error
    announce(this.buffers.control, controlWords.done)
  }
}
