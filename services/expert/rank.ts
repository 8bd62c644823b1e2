import { Worker } from 'node:worker_threads'
import { type ErrorCode, errorCodes, MoeshError } from '../config/errors.ts'
import type { ExpertCall } from '../dispatch/transport.ts'
import { announce, changed } from '../runtime/signal.ts'
import type { ShardSource } from './host.ts'
import { controlWords, type FromRank, jobHeader, type RankSetup, type ToRank } from './rank-protocol.ts'

type Waiter = { resolve: () => void; reject: (error: Error) => void }

/** The host's side of a rank thread: one job at a time, in the order of the calls. */
export class Rank {
  /** Settles with the reason if the thread ends without being asked to. */
  readonly failed: Promise<Error>
  readonly #worker: Worker
  readonly #control: Int32Array<SharedArrayBuffer>
  readonly #computeMs: Float64Array<SharedArrayBuffer>
  readonly #tickets = new Map<number, Waiter>()
  readonly #attachedRows = new Set<number>()
  readonly #attachedOutputs = new Set<number>()
  #nextTicket = 1
  #job = new Int32Array(new SharedArrayBuffer(0))
  #queue: Promise<void> = Promise.resolve()
  #queued = 0
  #jobError = ''
  #ended: Error | null = null
  #isClosing = false
  #tellFailed: (error: Error) => void = () => {}
  readonly #exited: Promise<void>

  constructor(setup: Omit<RankSetup, 'control' | 'computeMs'>) {
    this.failed = new Promise((resolve) => {
      this.#tellFailed = resolve
    })
    this.#control = new Int32Array(new SharedArrayBuffer(controlWords.size * 4))
    this.#computeMs = new Float64Array(new SharedArrayBuffer(16))
    const workerData: RankSetup = { ...setup, control: this.#control, computeMs: this.#computeMs }
    this.#worker = new Worker(new URL('./rank-worker.ts', import.meta.url), { workerData })
    this.#worker.on('message', (message: FromRank) => this.#hear(message))
    this.#exited = new Promise((resolve) => {
      this.#worker.on('error', (error) => this.#end(error))
      this.#worker.on('exit', () => {
        this.#end(new MoeshError('NODE_LOST', 'the rank thread has ended'))
        resolve()
      })
    })
  }

  load(layer: number, shards: ShardSource[]): Promise<void> {
    return this.#ask((ticket) => ({ kind: 'load', ticket, layer, shards }))
  }

  /** Does what an unload takes time for, between the calls; the unload must follow. */
  prepareUnload(layer: number, experts: number[]): Promise<void> {
    return this.#ask((ticket) => ({ kind: 'prepare-unload', ticket, layer, experts }))
  }

  /** After the calls that were accepted before. */
  unload(layer: number, experts: number[]): Promise<void> {
    return this.#inTurn(() => this.#ask((ticket) => ({ kind: 'unload', ticket, layer, experts })))
  }

  /** Computes the `rowsHere` rows of the call whose experts this rank holds; resolves with its computing time, in ms. */
  run(call: ExpertCall, rowsHere: number): Promise<number> {
    return this.#inTurn(() => this.#post(call, rowsHere))
  }

  /** Of all its computing so far, ms inside ONNX Runtime. */
  runtimeMs(): number {
    return this.#computeMs[1] ?? 0
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queued++ === 0 ? work() : this.#queue.then(work)
    const done = () => {
      this.#queued -= 1
    }
    this.#queue = turn.then(done, done)
    return turn
  }

  async close(): Promise<void> {
    await this.#queue
    this.#isClosing = true
    this.#send({ kind: 'close' })
    await this.#exited
  }

  async #post(call: ExpertCall, rowsHere: number): Promise<number> {
    if (this.#ended) throw this.#ended
    const { experts, counts, rowIndices } = call
    this.#attach(call)
    const words = jobHeader.size + 2 * experts.length + rowIndices.length
    if (this.#job.length < words) {
      this.#job = new Int32Array(new SharedArrayBuffer(Math.max(words, this.#job.length * 2, 1024) * 4))
      this.#send({ kind: 'attach-job', job: this.#job })
    }
    const shared = this.#job
    shared[jobHeader.layer] = call.layer
    shared[jobHeader.experts] = experts.length
    shared[jobHeader.rows] = rowIndices.length
    shared[jobHeader.rowsHere] = rowsHere
    shared[jobHeader.rowsId] = call.rows.id
    shared[jobHeader.outputsId] = call.outputs.id
    shared[jobHeader.outputStart] = call.outputStart
    shared.set(experts, jobHeader.size)
    shared.set(counts, jobHeader.size + experts.length)
    shared.set(rowIndices, jobHeader.size + 2 * experts.length)
    const before = Atomics.load(this.#control, controlWords.finished)
    Atomics.add(this.#control, controlWords.posted, 1)
    announce(this.#control, controlWords.wake)
    await changed(this.#control, controlWords.finished, before)
    if (this.#ended) throw this.#ended
    if (Atomics.load(this.#control, controlWords.failed) !== 0) {
      // The message that says why may still be on its way.
      await new Promise(setImmediate)
      throw new MoeshError('INTERNAL', `the rank failed: ${this.#jobError}`)
    }
    return this.#computeMs[0] ?? 0
  }

  #attach({ rows, outputs }: ExpertCall): void {
    if (!this.#attachedRows.has(rows.id)) {
      this.#attachedRows.add(rows.id)
      this.#send({ kind: 'attach-rows', rows })
    }
    if (!this.#attachedOutputs.has(outputs.id)) {
      this.#attachedOutputs.add(outputs.id)
      this.#send({ kind: 'attach-outputs', outputs })
    }
  }

  #ask(message: (ticket: number) => ToRank): Promise<void> {
    if (this.#ended) return Promise.reject(this.#ended)
    const ticket = this.#nextTicket++
    return new Promise((resolve, reject) => {
      this.#tickets.set(ticket, { resolve, reject })
      this.#send(message(ticket))
    })
  }

  #send(message: ToRank): void {
    this.#worker.postMessage(message)
    Atomics.add(this.#control, controlWords.sent, 1)
    announce(this.#control, controlWords.wake)
  }

  #hear(message: FromRank): void {
    if (message.kind === 'job-failed') {
      this.#jobError = message.message
      return
    }
    const waiter = this.#tickets.get(message.ticket)
    this.#tickets.delete(message.ticket)
    if (message.kind === 'done') waiter?.resolve()
    else {
      const code: ErrorCode = message.code in errorCodes ? (message.code as ErrorCode) : 'INTERNAL'
      waiter?.reject(new MoeshError(code, message.message))
    }
  }

  #end(error: Error): void {
    this.#ended ??= error
    if (!this.#isClosing) this.#tellFailed(this.#ended)
    for (const { reject } of this.#tickets.values()) reject(this.#ended)
    this.#tickets.clear()
    // Wakes a job that would wait for the dead thread for ever.
    announce(this.#control, controlWords.finished)
  }
}
