import type { EngineRequest, EngineSink, TokenOutput } from './request.ts'

/** One candidate of a request. */
export type Sequence = {
  request: Running
  candidate: number
  priority: number
  arrival: number
  /** Prompt, then output. */
  tokens: number[]
  /** Of them, those whose keys and values are in the KV cache. */
  cached: number
  /** Blocks of the KV cache in the order of its tokens, and names of full ones: see `KvBlocks`. */
  blocks: number[]
  names: string[]
  /** Of `KvBlocks`, when it began. */
  era: number
  /** When its last token was drawn; null before the first one. */
  lastTokenMs: number | null
  /** null while it waits. */
  slot: number | null
  state: 'waiting' | 'running' | 'ended'
  get pending(): number
}

export type Running = {
  request: EngineRequest
  sink: EngineSink
  sequences: Sequence[]
  /** Gathered while the prompt is read, where they were asked for; null once they are sent. */
  promptTokens: TokenOutput[] | null
  /** Of the prompt, found in the KV cache. */
  cachedTokens: number
  submittedMs: number
  startedMs: number | null
  firstTokenMs: number | null
  retried: number
  outputTokens: number
  ended: boolean
}

export function newSequence(request: Running, candidate: number, tokens: number[], arrival: number): Sequence {
  return {
    request,
    candidate,
    priority: request.request.priority,
    arrival,
    tokens,
    cached: 0,
    blocks: [],
    names: [],
    era: 0,
    lastTokenMs: null,
    slot: null,
    state: 'waiting',
    get pending() {
      return this.tokens.length - this.cached
    },
  }
}

export function wantsTrace({ request }: Sequence): boolean {
  const { expertTrace, promptExpertTrace } = request.request.output
  return expertTrace || promptExpertTrace
}
