import { setTimeout as sleep } from 'node:timers/promises'
import { status } from '@grpc/grpc-js'
import type { Message } from '../coordinator/client.ts'
import type { ClusterProcess, TestCluster } from './cluster.ts'

/** What a client asks for. `seed` and temperature: as in the API; greedy where they are missing. */
export type StreamRequest = {
  promptIds: readonly number[]
  maxTokens: number
  temperature?: number
  seed?: number
  /** Only requests of the same find what others computed of their prompt. */
  cacheSalt?: string
}

/** A token as it came: when, which, and the bits of its log-probability. */
export type TimedToken = { atMs: number; id: number; logprob: number }

export type StreamResult = {
  startedMs: number
  /** Null while it runs. */
  endedMs: number | null
  /** Something came back of it. */
  hasBegun: boolean
  tokens: TimedToken[]
  /** Times that it went on with Resume because its own coordinator was gone. */
  resumes: number
  retriedDispatches: number
  /** What its client saw beside tokens: must be null. */
  error: string | null
}

/** A stream that is gone is taken up so often before that counts as an error, with a pause between tries. */
const resumesMax = 150
const resumePauseMs = 100

let made = 0

/**
 * Runs one request as a careful client does: it knows what it has, and when the stream ends with UNAVAILABLE it resumes
 * on another coordinator. `tokens` grows while it runs.
 */
export async function runStream(
  cluster: TestCluster,
  first: ClusterProcess,
  request: StreamRequest,
  result: StreamResult = emptyResult(),
): Promise<StreamResult> {
  const id = `stream-${process.pid}-${made++}`
  let on = first
  for (let tries = 0; ; tries++) {
    // A request of which nothing came back may never have arrived: it is sent again.
    const ended = await (!result.hasBegun
      ? follow(cluster, on, 'moesh.v1.Inference/Generate', generateRequest(id, request), result)
      : follow(cluster, on, 'moesh.v1.Inference/Resume', resumeRequest(id, result.tokens.length), result))
    result.endedMs = performance.now()
    if (ended === null) return result
    // Only a coordinator's own death may be seen, as UNAVAILABLE.
    if (ended.code !== status.UNAVAILABLE || tries === resumesMax) {
      result.error = `${status[ended.code]}: ${ended.details}`
      return result
    }
    result.endedMs = null
    const others = cluster.coordinators.filter((each) => each.isServing && each !== on)
    on = others[tries % Math.max(1, others.length)] ?? on
    if (tries > 0) await sleep(resumePauseMs)
    else if (result.hasBegun) result.resumes++
  }
}

export function emptyResult(): StreamResult {
  return {
    startedMs: performance.now(),
    endedMs: null,
    hasBegun: false,
    tokens: [],
    resumes: 0,
    retriedDispatches: 0,
    error: null,
  }
}

/** The longest wait for a token, the first included, of those that came between `fromMs` and `toMs`; in ms. */
export function longestWaitMs(
  { startedMs, tokens }: StreamResult,
  fromMs = 0,
  toMs = Number.POSITIVE_INFINITY,
): number {
  let longest = 0
  let beforeMs = startedMs
  for (const { atMs } of tokens) {
    if (atMs >= fromMs && atMs <= toMs) longest = Math.max(longest, atMs - beforeMs)
    beforeMs = atMs
  }
  return longest
}

function generateRequest(id: string, request: StreamRequest): object {
  const { promptIds, maxTokens, temperature, seed, cacheSalt } = request
  return {
    request_id: id,
    token_ids: { ids: promptIds },
    sampling: { temperature: temperature ?? 0, max_tokens: maxTokens, ignore_eos: true, seed: seed ?? 1 },
    output: { logprobs: 0, no_text: true },
    cache_salt: cacheSalt ?? '',
  }
}

function resumeRequest(id: string, received: number): object {
  return { request_id: id, received: { 0: received } }
}

function follow(
  cluster: TestCluster,
  coordinator: ClusterProcess,
  method: string,
  request: object,
  result: StreamResult,
): Promise<{ code: status; details: string } | null> {
  const call = cluster.client(coordinator).stream(method, request)
  return new Promise((resolve) => {
    call.on('data', ({ delta, usage }: Message) => {
      const atMs = performance.now()
      result.hasBegun = true
      for (const { id, logprobs } of delta?.tokens ?? []) {
        result.tokens.push({ atMs, id, logprob: logprobs?.chosen ?? Number.NaN })
      }
      if (usage) result.retriedDispatches += Number(usage.retried_dispatches)
    })
    call.on('error', (error: { code: status; details: string }) => resolve(error))
    call.on('end', () => setImmediate(() => resolve(null)))
  })
}
