import { asMoeshError, type MoeshError } from '../../config/errors.ts'
import type { TextStream } from '../../tokenizer/text-stream.ts'
import type { EngineHandle, EngineRequest, EngineSink, EngineUsage, FinishReason, TokenOutput } from '../request.ts'
import type { JournalWriter } from './journal-writer.ts'
import type { ServedModel } from './models.ts'
import { type ReplyStream, tokenBytes } from './reply.ts'
import type { ResolvedRequest } from './resolve.ts'
import { StopStrings } from './stop-strings.ts'
import type { FinishMessage, TokenInfoMessage } from './wire.ts'

type Candidate = {
  /** null where neither text nor stop strings are wanted. */
  text: TextStream | null
  stops: StopStrings
  /** Tokens that the client has from an earlier stream: they make text and may stop, but are not sent again. */
  received: number
  outputTokens: number
  hasFinished: boolean
}

export type GenerationOptions = {
  request: ResolvedRequest
  model: ServedModel
  reply: ReplyStream
  journal: JournalWriter
  /** When resumed: per candidate how many tokens the client has, and which of its tokens the journal knows. */
  resume?: { received: readonly number[]; tokens: readonly (readonly number[])[]; count: number }
  /** Once, however it ends. */
  onEnd: () => void
}

/** One request on its way: tokens from the engine become text, stop where text says so, and go to the client. */
export class Generation implements EngineSink {
  readonly #options: GenerationOptions
  readonly #candidates: Candidate[]
  #handle: EngineHandle | null = null
  /** Ends what it waits for before it is submitted. */
  readonly #preparing = new AbortController()
  #isCancelled = false
  #hasEnded = false

  constructor(options: GenerationOptions) {
    this.#options = options
    const { request, model, resume } = options
    const needsText = request.text.isWanted || request.stop.length > 0
    this.#candidates = Array.from({ length: request.engine.candidates }, (_, candidate) => ({
      text: needsText ? (model.text?.createTextStream({ skipSpecial: request.text.skipsSpecial }) ?? null) : null,
      stops: new StopStrings(request.stop, request.text.includesStop),
      received: resume?.received[candidate] ?? 0,
      outputTokens: 0,
      hasFinished: false,
    }))
  }

  /** Errors: those of `Engine.submit`. */
  start(): void {
    const { request, resume } = this.#options
    if (resume === undefined) {
      this.#begin(request.engine)
      return
    }
    // The last token that the client has is drawn once more: if it ended its candidate, the engine finds out by itself.
    const known = this.#candidates.map(({ received }, candidate) => {
      const tokens = resume.tokens[candidate] ?? []
      return tokens.slice(0, Math.max(0, Math.min(received, tokens.length) - 1))
    })
    for (const [candidate, tokens] of known.entries()) {
      for (const [index, id] of tokens.entries()) this.#takeText(candidate, index, id)
    }
    this.#begin({ ...request.engine, resumeFrom: known })
  }

  /** Ends it with what it has; the client gets its finish. */
  cancel(): void {
    this.#isCancelled = true
    this.#preparing.abort()
    this.#handle?.cancel()
  }

  #begin(request: EngineRequest): void {
    const { model } = this.#options
    const waits = model.prepare?.(request, this.#preparing.signal) ?? null
    if (waits === null) {
      this.#handle = model.engine.submit(request, this)
      return
    }
    const cameMs = performance.now()
    const submit = () => {
      if (this.#hasEnded) return
      this.#handle = model.engine.submit({ ...request, waitedMs: performance.now() - cameMs }, this)
      if (this.#isCancelled) this.#handle.cancel()
    }
    waits.then(submit).catch((thrown: unknown) => this.interrupt(asMoeshError(thrown)))
  }

  /** Ends it without another word to the client: it is gone. */
  abandon(): void {
    if (this.#hasEnded) return
    this.#options.reply.close()
    this.#end()
    this.#handle?.cancel()
  }

  /** Ends it with an error that the client can act on. */
  interrupt(error: MoeshError): void {
    if (this.#hasEnded) return
    this.#options.reply.fail(error)
    this.#end()
    this.#handle?.cancel()
  }

  prompt(tokens: TokenOutput[] | null, cachedTokens = 0): void {
    const { request, reply } = this.#options
    const messages = tokens?.map(tokenMessage) ?? []
    const bytes = messages.reduce((sum, token) => sum + tokenBytes(token), 4 * request.engine.promptIds.length)
    reply.send(
      {
        prompt: {
          token_ids: [...request.engine.promptIds],
          tokens: messages,
          seed: String(request.engine.sampling.seed),
          cached_tokens: cachedTokens,
          model: request.model,
          fingerprint: request.fingerprint,
        },
      },
      // What the client asked for in one message is not what makes it slow.
      Math.min(bytes, 1024),
    )
  }

  token(candidate: number, index: number, token: TokenOutput): void {
    const state = this.#candidates[candidate]
    if (state === undefined || state.hasFinished || this.#hasEnded) return
    this.#options.journal.token(candidate, index, token.id)
    const { text, stop } = this.#takeText(candidate, index, token.id)
    if (index >= state.received) {
      this.#options.reply.sendDelta({ candidate, offset: index, tokens: [tokenMessage(token)], text })
    }
    if (stop === null) return
    this.#finish(candidate, { reason: 'STOP', stop_string: stop })
    this.#handle?.stop(candidate)
  }

  finish(candidate: number, reason: FinishReason): void {
    this.#finish(candidate, finishMessage(reason))
  }

  done(usage: EngineUsage): void {
    if (this.#hasEnded) return
    const { reply, resume } = this.#options
    reply.send(
      {
        usage: {
          prompt_tokens: usage.promptTokens,
          cached_tokens: usage.cachedTokens,
          output_tokens: this.#candidates.reduce((sum, { outputTokens }) => sum + outputTokens, 0),
          queue_seconds: usage.queueMs / 1000,
          time_to_first_token_seconds: usage.timeToFirstTokenMs / 1000,
          total_seconds: usage.totalMs / 1000,
          retried_dispatches: usage.retriedDispatches,
          resumed: resume?.count ?? 0,
        },
      },
      64,
    )
    reply.end()
    this.#end()
  }

  fail(error: Error): void {
    this.#options.reply.fail(error)
    this.#end()
  }

  /** The text that became certain with a token, and the stop string that it completed. */
  #takeText(candidate: number, index: number, id: number): { text: string; stop: string | null } {
    const state = this.#candidates[candidate]
    if (state === undefined) return { text: '', stop: null }
    state.outputTokens = index + 1
    if (state.text === null) return { text: '', stop: null }
    const { sampling } = this.#options.request.engine
    const { isWanted, includesStop } = this.#options.request.text
    // A stop token ends the text like a stop string: it is part of it only where that was asked for.
    const isStopToken = sampling.stopTokenIds.has(id)
    const piece = isStopToken && !includesStop ? '' : state.text.push(id)
    const { text, stop } = state.stops.push(piece, state.outputTokens >= sampling.minTokens)
    return { text: isWanted ? text : '', stop }
  }

  #finish(candidate: number, finish: FinishMessage): void {
    const state = this.#candidates[candidate]
    if (state === undefined || state.hasFinished || this.#hasEnded) return
    state.hasFinished = true
    let rest = ''
    if (finish.stop_string === undefined && state.text !== null) {
      // A character that never became whole, then what might have become a stop string.
      rest = state.stops.push(state.text.flush(), false).text + state.stops.flush()
    }
    const text = this.#options.request.text.isWanted ? rest : ''
    this.#options.reply.sendDelta({ candidate, offset: state.outputTokens, tokens: [], text, finish })
  }

  #end(): void {
    if (this.#hasEnded) return
    this.#hasEnded = true
    this.#preparing.abort()
    this.#options.journal.finish()
    this.#options.onEnd()
  }
}

function finishMessage(reason: FinishReason): FinishMessage {
  switch (reason.kind) {
    case 'stop':
      return { reason: 'STOP', stop_token_id: reason.tokenId }
    case 'length':
      return { reason: 'LENGTH' }
    case 'cancelled':
      return { reason: 'CANCELLED' }
  }
}

function tokenMessage({ id, logprobs, experts }: TokenOutput): TokenInfoMessage {
  const message: TokenInfoMessage = { id }
  if (logprobs !== null) {
    // protobufjs takes lists of floats as plain arrays only.
    const all = logprobs.all === null ? [] : Array.from(logprobs.all)
    message.logprobs = { chosen: logprobs.chosen, rank: logprobs.rank, top: logprobs.top, all }
  }
  if (experts !== null) {
    message.experts = experts.map(({ layer, expertIds, weights }) => ({ layer, expert_ids: expertIds, weights }))
  }
  return message
}
