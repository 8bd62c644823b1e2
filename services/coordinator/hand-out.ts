import { headRow, isWanted, nextTokens, readLogprobs, type StepItem, stillWanted, type Wanted } from './head-rows.ts'
import type { KvBlocks } from './kv-blocks.ts'
import type { FinishReason } from './request.ts'
import type { RequestCounters } from './request-counters.ts'
import type { Running, Sequence } from './sequence.ts'
import type { StepCounters } from './step-counters.ts'
import { resultWords } from './team/layout.ts'
import type { Team } from './team/team.ts'
import { TokenRate } from './token-rate.ts'
import type { TraceRecorder } from './trace-recorder.ts'

export type HandOutOptions = {
  team: Team
  kv: KvBlocks
  headRowsMax: number
  contextLength: number
  steps: StepCounters
  counters: RequestCounters
  nowMs: () => number
  /** Takes a call of a sink, to be made later, in order. */
  send: (call: () => void) => void
  end: (sequence: Sequence, reason: FinishReason) => void
}

/** Passes on what a step has computed: tokens that were drawn, log-probabilities and traces. */
export class HandOut {
  readonly #options: HandOutOptions
  readonly #tokenRate: TokenRate

  constructor(options: HandOutOptions) {
    this.#options = options
    this.#tokenRate = new TokenRate(options.nowMs)
  }

  get tokensPerSecond(): number {
    return this.#tokenRate.perSecond()
  }

  /** Asks the head for what the step's rows are for, a slice at a time, and passes it on; the first of `early` is there. */
  async run(items: readonly StepItem[], traces: TraceRecorder | null, early: readonly Wanted[]): Promise<void> {
    const { team, headRowsMax, steps, nowMs } = this.#options
    const take = (slice: readonly Wanted[]) => {
      const takenMs = nowMs()
      for (const [index, want] of slice.entries()) this.#take(want, index, traces, takenMs)
    }
    take(early.slice(0, headRowsMax))
    const wanted = early.length > 0 ? early.slice(headRowsMax) : items.flatMap((item) => this.#wanted(item, traces))
    for (let from = 0; from < wanted.length; from += headRowsMax) {
      const slice = stillWanted(wanted.slice(from, from + headRowsMax))
      if (slice.length === 0) continue
      steps.lap()
      await team.head(slice.map(headRow))
      steps.ranHead()
      take(slice)
    }
    for (const { sequence, guesses } of items) {
      if (guesses.length > 0) this.#options.kv.trim(sequence)
      this.#finishScoring(sequence)
    }
  }

  #wanted(item: StepItem, traces: TraceRecorder | null): Wanted[] {
    const { sequence, start, count, row } = item
    const { request } = sequence.request
    const promptTokens = request.promptIds.length
    const wanted: Wanted[] = []
    if (sequence.state === 'ended') return wanted
    const collects = sequence.candidate === 0 && sequence.request.promptTokens !== null
    for (let i = 0; collects && i < count && start + i < promptTokens; i++) {
      this.#collectPrompt(item, start + i, traces)
      const scored = request.output.promptLogprobs !== null && start + i + 1 < promptTokens
      if (scored) wanted.push({ row: row + i, position: start + i, sequence, draws: false, guess: null })
    }
    const isComplete = sequence.cached === sequence.tokens.length
    if (!isComplete || request.sampling.maxTokens === 0) return wanted
    const [drawn, ...behindGuesses] = nextTokens(item)
    wanted.push(drawn, ...behindGuesses)
    const forked = sequence.request.sequences.filter(
      (other) => other !== sequence && other.state === 'running' && other.cached === sequence.cached,
    )
    if (sequence.candidate === 0 && drawn.position === 0 && request.resumeFrom === undefined) {
      for (const other of forked) wanted.push({ ...drawn, sequence: other })
    }
    return wanted
  }

  #collectPrompt(item: StepItem, position: number, traces: TraceRecorder | null): void {
    const { sequence, row, start } = item
    const { promptTokens, request } = sequence.request
    if (promptTokens === null) return
    const experts = request.output.promptExpertTrace && traces !== null ? traces.of(row + position - start) : null
    const known = promptTokens[position]
    if (known) known.experts = experts
    else promptTokens.push({ id: sequence.tokens[position] ?? 0, logprobs: null, experts })
  }

  /** Result `index` of the head slice. */
  #take(want: Wanted, index: number, traces: TraceRecorder | null, takenMs: number): void {
    const { sequence, position, draws, guess } = want
    const running = sequence.request
    if (!isWanted(want)) return
    const { buffers } = this.#options.team
    if (!draws) {
      const entry = running.promptTokens?.[position + 1]
      const logprobs = readLogprobs(buffers, index, running.request.output.promptLogprobs)
      // The next row may come with a later chunk only.
      if (entry) entry.logprobs = logprobs
      else running.promptTokens?.push({ id: sequence.tokens[position + 1] ?? 0, logprobs, experts: null })
      return
    }
    this.#sendPrompt(running)
    if (guess !== null) this.#keepGuess(sequence)
    const id = buffers.results[index * resultWords.size + resultWords.token] ?? 0
    const experts = running.request.output.expertTrace && traces !== null ? traces.of(want.row) : null
    const logprobs = readLogprobs(buffers, index, running.request.output.logprobs)
    sequence.tokens.push(id)
    running.outputTokens += 1
    this.#countToken(sequence, takenMs)
    this.#options.send(() => running.sink.token(sequence.candidate, position, { id, logprobs, experts }))
    const { sampling } = running.request
    const outputTokens = position + 1
    if (sampling.stopTokenIds.has(id) && outputTokens >= sampling.minTokens) {
      this.#options.end(sequence, { kind: 'stop', tokenId: id })
    } else if (outputTokens >= sampling.maxTokens || sequence.tokens.length >= this.#options.contextLength) {
      this.#options.end(sequence, { kind: 'length' })
    }
  }

  /** The guess at the end of its tokens was right, and has been computed. */
  #keepGuess(sequence: Sequence): void {
    sequence.cached += 1
    this.#options.kv.publish(sequence, sequence.cached - 1)
    this.#options.counters.guessedRight += 1
  }

  #countToken(sequence: Sequence, takenMs: number): void {
    const { counters } = this.#options
    const running = sequence.request
    this.#tokenRate.count()
    counters.generatedTokens += 1
    if (running.firstTokenMs === null) counters.timeToFirstToken.record((takenMs - running.submittedMs) / 1000)
    running.firstTokenMs ??= takenMs
    if (sequence.lastTokenMs !== null) counters.interToken.record((takenMs - sequence.lastTokenMs) / 1000)
    sequence.lastTokenMs = takenMs
  }

  #sendPrompt(running: Running): void {
    if (running.promptTokens === null) return
    const { promptLogprobs, promptExpertTrace } = running.request.output
    const tokens = promptLogprobs !== null || promptExpertTrace ? running.promptTokens : null
    running.promptTokens = null
    this.#options.counters.promptTokens += running.request.promptIds.length
    this.#options.counters.cachedPromptTokens += running.cachedTokens
    this.#options.send(() => running.sink.prompt(tokens, running.cachedTokens))
  }

  /** A request for no tokens ends when its prompt is read. */
  #finishScoring(sequence: Sequence): void {
    const { request } = sequence.request
    if (sequence.state === 'ended' || request.sampling.maxTokens > 0) return
    if (sequence.cached < sequence.tokens.length) return
    this.#sendPrompt(sequence.request)
    for (const other of sequence.request.sequences) this.#options.end(other, { kind: 'length' })
  }
}
