import { Histogram } from '../telemetry/histogram.ts'
import type { FinishReason } from './request.ts'

/** Streams of people are judged in tens of milliseconds, long prompts take minutes. Seconds. */
const firstTokenBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160]
const interTokenBounds = [0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10]

/** What has become of requests since the start, as an engine sees them. */
export class RequestCounters {
  readonly finished: Record<FinishReason['kind'], number> = { stop: 0, length: 0, cancelled: 0 }
  failed = 0
  /** Refused because too many were waiting. */
  refused = 0
  /** Sequences that gave up their place in the KV cache and were computed again. */
  preempted = 0
  /** Of prompts; what a preempted request reads again does not count. */
  promptTokens = 0
  /** Of these, found in the KV cache. */
  cachedPromptTokens = 0
  generatedTokens = 0
  /** Computed before they were drawn, and those of them that were drawn then. */
  guessedTokens = 0
  guessedRight = 0
  /** Seconds from a request's arrival here to its first token, and from a token to the next of the same candidate. */
  readonly timeToFirstToken = new Histogram(firstTokenBounds)
  readonly interToken = new Histogram(interTokenBounds)
}
