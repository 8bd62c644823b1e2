import assert from 'node:assert/strict'
import { MoeshError } from '../config/errors.ts'
import { Cancellation } from '../dispatch/cancellation.ts'
import type { Dispatcher } from '../dispatch/transport.ts'
import type { ModelSpec } from '../model/spec.ts'
import { checkRequest } from './admission.ts'
import { HandOut } from './hand-out.ts'
import { headOfDecode, headRow, type StepItem } from './head-rows.ts'
import { KvBlocks } from './kv-blocks.ts'
import { type KvExchange, StepwiseExchange } from './kv-exchange.ts'
import { Places } from './places.ts'
import type { Engine, EngineHandle, EngineRequest, EngineSink, FinishReason } from './request.ts'
import type { RequestCounters } from './request-counters.ts'
import { kvBlocks, planStep, type StepPlan } from './scheduler.ts'
import { guess, newSequence, noGuesses, type Running, type Sequence, wantsTrace } from './sequence.ts'
import type { StepCounters } from './step-counters.ts'
import type { Team } from './team/team.ts'
import { TraceRecorder } from './trace-recorder.ts'

export type EngineLimits = Engine['limits'] & { kvTokensMax: number }

export type EngineOptions = {
  spec: ModelSpec
  team: Team
  /** Null where the team computes the experts. */
  dispatcher: Dispatcher | null
  limits: EngineLimits
  /** Most alternatives that log-probabilities may name. */
  topMax: number
  headRowsMax: number
  /** Most tokens that a step guesses of a sequence; 0: none. */
  guessesMax: number
  /** Somebody takes the changes of `kv`. */
  sharesKv: boolean
  steps: StepCounters
  counters: RequestCounters
  nowMs: () => number
}

/**
 * The step loop of a coordinator: schedule, run, hand out. Rows of all requests share the linear layers and one dispatch
 * per layer; attention runs per sequence.
 */
export function createEngine(options: EngineOptions): Engine & { kv: KvExchange } {
  return new StepEngine(options)
}

class StepEngine implements Engine {
  readonly limits: Engine['limits']
  readonly #options: EngineOptions
  readonly #requests = new Map<string, Running>()
  #waiting: Sequence[] = []
  #running: Sequence[] = []
  readonly #kv: KvBlocks
  readonly #places: Places
  readonly #exchange: StepwiseExchange
  #arrivals = 0
  #wake: (() => void) | null = null
  #closed = false
  /** Of the step that runs. */
  #cancellation: Cancellation | null = null
  /** Calls of sinks, in order. They are made while the next step computes, so that no step waits for a client. */
  #outbox: (() => void)[] = []
  readonly #handOut: HandOut
  readonly #loop: Promise<void>

  constructor(options: EngineOptions) {
    this.#options = options
    this.limits = options.limits
    this.#kv = new KvBlocks(
      options.limits.kvTokensMax,
      options.team.buffers.blocks,
      kvBlocks(options.limits.contextLength),
      options.sharesKv,
    )
    this.#places = new Places(options.team, this.#kv, options.limits.maxSequences)
    this.#exchange = new StepwiseExchange(this.#kv, options.team, options.nowMs, () => this.#wake?.())
    this.#handOut = new HandOut({
      ...options,
      kv: this.#kv,
      contextLength: options.limits.contextLength,
      send: (call) => this.#outbox.push(call),
      end: (sequence, reason) => this.#end(sequence, reason),
    })
    this.#loop = this.#serve()
  }

  get kv(): KvExchange {
    return this.#exchange
  }

  submit(request: EngineRequest, sink: EngineSink): EngineHandle {
    this.#checkAdmission(request)
    const nowMs = this.#options.nowMs()
    const running: Running = {
      request,
      sink,
      sequences: [],
      promptTokens: [],
      cachedTokens: 0,
      submittedMs: nowMs - (request.waitedMs ?? 0),
      startedMs: null,
      firstTokenMs: null,
      retried: 0,
      outputTokens: 0,
      ended: false,
    }
    // The other candidates begin with a copy of the first one's prompt, unless they have output of their own already.
    const separate = request.resumeFrom !== undefined
    for (let candidate = 0; candidate < request.candidates; candidate++) {
      const given = request.resumeFrom?.[candidate] ?? []
      const tokens = [...request.promptIds, ...given]
      const sequence = newSequence(running, candidate, tokens, this.#arrivals++, this.#options.guessesMax)
      running.sequences.push(sequence)
      running.outputTokens += given.length
      if (candidate === 0 || separate) this.#waiting.push(sequence)
    }
    this.#requests.set(request.id, running)
    this.#wake?.()
    return {
      stop: (candidate) => {
        const sequence = running.sequences[candidate]
        if (sequence) this.#end(sequence, null)
        this.#cancelIfUseless()
        setImmediate(() => this.#deliver())
      },
      cancel: () => {
        for (const sequence of running.sequences) this.#end(sequence, { kind: 'cancelled' })
        this.#cancelIfUseless()
        setImmediate(() => this.#deliver())
      },
    }
  }

  stats(): ReturnType<Engine['stats']> {
    return {
      running: this.#running.length,
      queued: this.#waiting.length,
      tokensPerSecond: this.#handOut.tokensPerSecond,
      kvTokensUsed: this.#kv.usedTokens,
      kvTokensKept: this.#kv.keptTokens,
      kvTokensMax: this.#options.limits.kvTokensMax,
    }
  }

  beginEra(): void {
    this.#kv.beginEra()
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const { sequences } of [...this.#requests.values()]) {
      for (const sequence of sequences) this.#end(sequence, { kind: 'cancelled' })
    }
    this.#cancellation?.cancel()
    this.#wake?.()
    await this.#loop
    await this.#exchange.close()
    this.#deliver()
  }

  #checkAdmission(request: EngineRequest): void {
    const { limits, topMax, spec } = this.#options
    if (this.#closed) throw new MoeshError('SHUTTING_DOWN', 'this coordinator is shutting down', 'use another one')
    if (this.#requests.has(request.id)) {
      throw new MoeshError('REQUEST_EXISTS', `request_id "${request.id}" is running`, 'choose another one')
    }
    checkRequest(request, { engine: limits, vocabulary: spec.vocabulary, topMax })
    if (this.#waiting.length >= limits.queueMax) {
      this.#options.counters.refused += 1
      throw new MoeshError('QUEUE_FULL', `${this.#waiting.length} requests are waiting`, 'try again later')
    }
  }

  async #serve(): Promise<void> {
    while (!this.#closed) {
      if (this.#exchange.hasWork) {
        this.#deliver()
        await this.#exchange.work()
      }
      if (this.#running.length === 0 && this.#waiting.length === 0) {
        this.#deliver()
        if (this.#exchange.hasWork || this.#closed) continue
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
        this.#wake = null
        continue
      }
      this.#options.steps.begin()
      const items = this.#schedule()
      try {
        await this.#step(items)
      } catch (thrown) {
        this.#failStep(items, thrown)
      }
    }
  }

  #deliver(): void {
    const calls = this.#outbox
    this.#outbox = []
    for (const call of calls) call()
  }

  #schedule(): StepItem[] {
    const { team, guessesMax, limits, counters } = this.#options
    for (const sequence of this.#running) guess(sequence, guessesMax, limits.contextLength)
    let row = 0
    const items = this.#plan().scheduled.map(({ sequence, count: known, guessed }): StepItem => {
      const { slot, cached: start, tokens } = sequence
      assert(slot !== null)
      const count = known + guessed
      this.#kv.extend(sequence, start + count)
      const guesses = guessed === 0 ? noGuesses : sequence.guesses.slice(0, guessed)
      for (let i = 0; i < known; i++) team.buffers.tokens[row + i] = tokens[start + i] ?? 0
      team.buffers.tokens.set(guesses, row + known)
      const item = { slot, start, count, row, sequence, guesses }
      counters.guessedTokens += guessed
      row += count
      return item
    })
    assert(row > 0)
    return items
  }

  #plan(): StepPlan<Sequence> {
    const { limits } = this.#options
    const most = { rowsMax: limits.maxBatchTokens, sequencesMax: limits.maxSequences }
    for (;;) {
      const plan = planStep(this.#running, this.#waiting, most, this.#kv)
      for (const sequence of plan.preempted) this.#preempt(sequence)
      for (const sequence of plan.admitted) this.#admit(sequence)
      if (plan.scheduled.length > 0) return plan
      assert(plan.preempted.length > 0)
    }
  }

  #admit(sequence: Sequence): void {
    this.#waiting = this.#waiting.filter((other) => other !== sequence)
    this.#running.push(sequence)
    sequence.state = 'running'
    const running = sequence.request
    const isFirst = running.startedMs === null
    running.startedMs ??= this.#options.nowMs()
    this.#places.take(sequence)
    if (isFirst) running.cachedTokens = Math.min(sequence.cached, running.request.promptIds.length)
  }

  #preempt(sequence: Sequence): void {
    this.#running = this.#running.filter((other) => other !== sequence)
    this.#places.giveBack(sequence)
    sequence.state = 'waiting'
    sequence.guesses = noGuesses
    this.#options.counters.preempted += 1
    this.#waiting.push(sequence)
  }

  async #step(items: readonly StepItem[]): Promise<void> {
    const { spec, team, dispatcher, steps } = this.#options
    const { buffers } = team
    const last = items.at(-1)
    assert(last !== undefined)
    const rows = last.row + last.count
    const traces = items.some(({ sequence }) => wantsTrace(sequence)) ? new TraceRecorder(rows) : null
    this.#cancellation = new Cancellation()
    const early = headOfDecode(items)
    team.setStep(items, rows, early.slice(0, this.#options.headRowsMax).map(headRow))
    steps.lap()
    const started = team.run(0, traces !== null)
    this.#deliver()
    let layer = await started
    steps.ranTeam()
    while (layer < spec.layers.length) {
      const ffn = spec.layers[layer]?.ffn
      assert(ffn?.kind === 'moe')
      traces?.record(layer, ffn.expertsPerToken, buffers.expertIds, buffers.expertWeights)
      if (dispatcher !== null) await this.#dispatch(dispatcher, items, layer, rows, ffn.expertsPerToken)
      layer = await team.run(layer + 1, traces !== null)
      steps.ranTeam()
    }
    this.#cancellation = null
    for (const { sequence, start, count, guesses } of items) {
      // One that was ended on the way has no blocks any more.
      if (sequence.slot === null) continue
      sequence.cached += count - guesses.length
      this.#kv.publish(sequence, start)
    }
    this.#forkCandidates(items)
    await this.#handOut.run(items, traces, early)
    steps.end(rows, items.length, early.length > 0 ? 'decode' : 'prefill')
  }

  async #dispatch(
    dispatcher: Dispatcher,
    items: readonly StepItem[],
    layer: number,
    rows: number,
    expertsPerToken: number,
  ): Promise<void> {
    const { team, steps } = this.#options
    const { buffers } = team
    const pairs = rows * expertsPerToken
    const report = await dispatcher.dispatch(
      {
        layer,
        rowCount: rows,
        expertsPerToken,
        expertIds: buffers.expertIds.subarray(0, pairs),
        rows: buffers.rows,
        outputs: buffers.outputs,
        outputRows: buffers.outputRows.subarray(0, pairs),
      },
      this.#cancellation ?? undefined,
    )
    steps.dispatched(rows, report.computeMs)
    if (report.retriedRows === 0) return
    for (const { sequence } of items) sequence.request.retried += report.retriedRows
  }

  /** Candidates that share the prompt begin where the first one's prompt ends. */
  #forkCandidates(items: readonly StepItem[]): void {
    for (const { sequence } of items) {
      const { request, sequences } = sequence.request
      const promptIsRead = sequence.candidate === 0 && sequence.cached === request.promptIds.length
      if (!promptIsRead || sequences.length === 1 || request.resumeFrom !== undefined) continue
      for (const other of sequences) {
        if (other.candidate === 0 || other.state !== 'waiting' || this.#waiting.includes(other)) continue
        if (this.#places.fork(sequence, other)) {
          other.state = 'running'
          this.#running.push(other)
        } else this.#waiting.push(other) // It reads the prompt by itself later.
      }
    }
  }

  /** `reason` null: the client ended it and wants no word of it. */
  #end(sequence: Sequence, reason: FinishReason | null): void {
    if (sequence.state === 'ended') return
    const running = sequence.request
    sequence.state = 'ended'
    sequence.lookup = null
    this.#waiting = this.#waiting.filter((other) => other !== sequence)
    this.#running = this.#running.filter((other) => other !== sequence)
    this.#places.giveBack(sequence)
    if (reason !== null) this.#outbox.push(() => running.sink.finish(sequence.candidate, reason))
    if (running.ended || running.sequences.some(({ state }) => state !== 'ended')) return
    running.ended = true
    // A client that wants no word of the end has found what it looked for.
    this.#options.counters.finished[reason?.kind ?? 'stop'] += 1
    this.#requests.delete(running.request.id)
    const nowMs = this.#options.nowMs()
    const usage = {
      promptTokens: running.request.promptIds.length,
      cachedTokens: running.cachedTokens,
      outputTokens: running.outputTokens,
      queueMs: (running.startedMs ?? nowMs) - running.submittedMs,
      timeToFirstTokenMs: (running.firstTokenMs ?? nowMs) - running.submittedMs,
      totalMs: nowMs - running.submittedMs,
      retriedDispatches: running.retried,
    }
    this.#outbox.push(() => running.sink.done(usage))
  }

  /** A step may wait long for an expert; nobody should wait for a step that no request needs. */
  #cancelIfUseless(): void {
    if (this.#running.length === 0) this.#cancellation?.cancel()
  }

  #failStep(items: readonly StepItem[], thrown: unknown): void {
    const error = thrown instanceof Error ? thrown : new Error(String(thrown))
    for (const { sequence } of items) {
      const running = sequence.request
      if (running.ended) continue
      running.ended = true
      this.#options.counters.failed += 1
      this.#requests.delete(running.request.id)
      for (const other of running.sequences) {
        other.state = 'ended'
        this.#places.giveBack(other)
      }
      this.#outbox.push(() => running.sink.fail(error))
    }
    this.#waiting = this.#waiting.filter(({ state }) => state !== 'ended')
    this.#running = this.#running.filter(({ state }) => state !== 'ended')
  }
}
