/** What the engine is asked for: tokens in, tokens out. Text, stop strings and templates are the API's. */
export type EngineRequest = {
  id: string
  /** Not empty; every id is below the vocabulary's size. */
  promptIds: readonly number[]
  /** Candidates, at least 1. */
  candidates: number
  sampling: SamplingOptions
  output: OutputOptions
  /** Higher runs first. */
  priority: number
  /** Keys and values of equal beginnings are shared only among requests with the same one. */
  cacheSalt: string
  /** Tokens that each candidate has already, when a request is resumed: computed again, not drawn again. */
  resumeFrom?: readonly (readonly number[])[]
  /** What it has waited since it came; 0 if not given. */
  waitedMs?: number
}

/** All resolved: the model's defaults are filled in already. */
export type SamplingOptions = {
  /** 0: greedy. */
  temperature: number
  /** 0: off. */
  topK: number
  /** 1: off. */
  topP: number
  /** 0: off. */
  minP: number
  seed: bigint
  /** 0: score the prompt only. At most what the context leaves room for. */
  maxTokens: number
  minTokens: number
  /** End-of-text ids (unless ignored) and the client's own. */
  stopTokenIds: ReadonlySet<number>
  /** 1: off. */
  repetitionPenalty: number
  frequencyPenalty: number
  presencePenalty: number
  logitBias: ReadonlyMap<number, number>
}

export type OutputOptions = {
  /** null: none; 0: the chosen token's only; k: the k likeliest too; -1: the whole vocabulary. */
  logprobs: number | null
  promptLogprobs: number | null
  expertTrace: boolean
  promptExpertTrace: boolean
}

/** Natural logarithms of softmax over unmodified logits, rounded to f32 once. */
export type TokenLogprobs = {
  chosen: number
  /** 1: the likeliest; ties by lower id. */
  rank: number
  top: { id: number; logprob: number }[]
  /** [vocabulary], only with -1. */
  all: Float32Array | null
}

export type LayerTrace = { layer: number; expertIds: number[]; weights: number[] }

export type TokenOutput = {
  id: number
  logprobs: TokenLogprobs | null
  experts: LayerTrace[] | null
}

export type FinishReason = { kind: 'stop'; tokenId: number } | { kind: 'length' } | { kind: 'cancelled' }

export type EngineUsage = {
  promptTokens: number
  cachedTokens: number
  outputTokens: number
  queueMs: number
  timeToFirstTokenMs: number
  totalMs: number
  retriedDispatches: number
}

/** Called on the engine's own turn: must not throw and must not block. */
export interface EngineSink {
  /**
   * Once, before any token; entries only where prompt log-probabilities or traces were asked for. `cachedTokens`: of
   * the prompt, found in the prefix cache.
   */
  prompt(tokens: TokenOutput[] | null, cachedTokens?: number): void
  /** `index`: position in the candidate's output, from 0. */
  token(candidate: number, index: number, token: TokenOutput): void
  finish(candidate: number, reason: FinishReason): void
  /** Once, last, after every candidate's finish. */
  done(usage: EngineUsage): void
  /** Instead of done: the request failed. */
  fail(error: Error): void
}

export interface EngineHandle {
  /** Ends one candidate (a stop string was found): its finish is not called. */
  stop(candidate: number): void
  /** Ends the request: finish(cancelled) for what still runs, then done. */
  cancel(): void
}

/** KV tokens: in whole blocks, of running sequences; kept of ended ones, to be found again; room for all together. */
export type EngineStats = {
  running: number
  queued: number
  tokensPerSecond: number
  kvTokensUsed: number
  kvTokensKept: number
  kvTokensMax: number
}

export interface Engine {
  /** Throws INVALID_ARGUMENT, REQUEST_EXISTS, QUEUE_FULL. */
  submit(request: EngineRequest, sink: EngineSink): EngineHandle
  readonly limits: { contextLength: number; maxSequences: number; maxBatchTokens: number; queueMax: number }
  stats(): EngineStats
  /** From now on the same tokens give other bits: requests to come find nothing that was computed before. */
  beginEra(): void
  close(): Promise<void>
}
