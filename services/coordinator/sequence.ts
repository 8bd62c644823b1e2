import { PromptLookup } from './prompt-lookup.ts'
import type { EngineRequest, EngineSink, TokenOutput } from './request.ts'
import { looksBack } from './sampling.ts'

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
  /** Guesses of what follows the tokens: see `guess`. */
  guesses: readonly number[]
  mayGuess: boolean
  /** From the first guess on. */
  lookup: PromptLookup | null
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
  get guessed(): number
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

export const noGuesses: readonly number[] = []

export function newSequence(
  request: Running,
  candidate: number,
  tokens: number[],
  arrival: number,
  guessesMax: number,
): Sequence {
  return {
    request,
    candidate,
    priority: request.request.priority,
    arrival,
    tokens,
    cached: 0,
    guesses: noGuesses,
    // A draw that looks back would see tokens that were guessed wrong.
    mayGuess: guessesMax > 0 && !looksBack(request.request.sampling),
    lookup: null,
    blocks: [],
    names: [],
    era: 0,
    lastTokenMs: null,
    slot: null,
    state: 'waiting',
    get pending() {
      return this.tokens.length - this.cached
    },
    get guessed() {
      return this.guesses.length
    },
  }
}

/** Guesses at most `guessesMax` tokens that may follow, while it decodes, as far as it may still become so long. */
export function guess(sequence: Sequence, guessesMax: number, contextLength: number): void {
  const { request, mayGuess, tokens, pending } = sequence
  if (!mayGuess) return
  sequence.guesses = noGuesses
  if (request.promptTokens !== null || pending !== 1) return
  const { promptIds, sampling } = request.request
  // Beyond every guess that is right there is a token to draw.
  const left = Math.min(contextLength, promptIds.length + sampling.maxTokens) - tokens.length - 1
  sequence.lookup ??= new PromptLookup()
  sequence.guesses = sequence.lookup.propose(tokens, Math.min(guessesMax, left))
}

export function wantsTrace({ request }: Sequence): boolean {
  const { expertTrace, promptExpertTrace } = request.request.output
  return expertTrace || promptExpertTrace
}
