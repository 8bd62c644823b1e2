import { MoeshError } from '../../config/errors.ts'
import { promptBytesPerToken, promptLogprobBytesMax } from '../../config/limits.ts'
import type { ChatMessage } from '../../tokenizer/chat-template.ts'
import type { EngineRequest, SamplingOptions } from '../request.ts'
import { type ServedModel, textOf } from './models.ts'
import type { ChatInput, GenerateRequestMessage } from './wire.ts'

/** A request with everything decided: what the engine runs, and how its tokens become text. Also what is journaled. */
export type ResolvedRequest = {
  engine: Omit<EngineRequest, 'resumeFrom'>
  /** As in `ListModels`. */
  model: string
  fingerprint: string
  stop: readonly string[]
  text: { isWanted: boolean; includesStop: boolean; skipsSpecial: boolean }
}

/**
 * Checks a request against the model and fills in the model's defaults. `drawSeed` is asked where the client gave none.
 * Errors: INVALID_ARGUMENT, naming the field and what is allowed.
 */
export function resolveRequest(
  message: GenerateRequestMessage,
  id: string,
  model: ServedModel,
  drawSeed: () => bigint,
): ResolvedRequest {
  const promptIds = promptIdsOf(message, model)
  const { limits } = model.engine
  const candidates = Math.max(1, message.sampling?.n ?? 1)
  if (candidates > limits.maxSequences) {
    throw invalid('sampling.n', `${candidates} candidates do not run at once here; at most ${limits.maxSequences} do`)
  }
  const { output } = message
  const resolved: ResolvedRequest = {
    engine: {
      id,
      promptIds,
      candidates,
      sampling: samplingOf(message, model, promptIds.length, drawSeed),
      output: {
        logprobs: logprobsOf('output.logprobs', output?.logprobs, model),
        promptLogprobs: logprobsOf('output.prompt_logprobs', output?.prompt_logprobs, model),
        expertTrace: output?.expert_trace ?? false,
        promptExpertTrace: output?.prompt_expert_trace ?? false,
      },
      priority: message.priority,
      cacheSalt: message.cache_salt,
    },
    model: model.manifest.name,
    fingerprint: model.fingerprint,
    stop: message.sampling?.stop ?? [],
    text: {
      isWanted: !(output?.no_text ?? false) && model.text !== null,
      includesStop: output?.include_stop ?? false,
      skipsSpecial: output?.skip_special_tokens ?? false,
    },
  }
  if (resolved.stop.length > 0) textOf(model, 'sampling.stop')
  checkPromptLogprobBytes(resolved.engine.output.promptLogprobs, promptIds.length, model)
  return resolved
}

function promptIdsOf(message: GenerateRequestMessage, model: ServedModel): number[] {
  const { contextLength } = model.engine.limits
  const promptIds = inputIds(message, model)
  if (promptIds.length === 0) {
    throw invalid(
      message.input === 'token_ids' ? 'token_ids.ids' : message.input,
      'the prompt has no tokens; it needs one',
    )
  }
  // One token of room for what is generated; scoring alone needs none.
  const room = message.sampling?.max_tokens === 0 ? contextLength : contextLength - 1
  if (promptIds.length > room) {
    throw invalid(
      message.input,
      `the prompt has ${promptIds.length} tokens, the context of ${model.manifest.name} leaves room for ${room}`,
    )
  }
  return promptIds
}

function inputIds(message: GenerateRequestMessage, model: ServedModel): number[] {
  switch (message.input) {
    case 'token_ids': {
      const ids = message.token_ids?.ids ?? []
      checkIds('token_ids.ids', ids, model)
      return ids
    }
    case 'text': {
      const text = message.text ?? ''
      checkTextBytes('text', text, model)
      return textOf(model, 'text').encode(text, { special: true })
    }
    case 'chat': {
      if (message.chat == null) throw invalid('chat', 'is unset')
      return chatIds(message.chat, model).ids
    }
  }
}

/** Templates write their special tokens themselves, so none are added when the rendered text is tokenized. */
export function chatIds(chat: ChatInput, model: ServedModel): { ids: number[]; rendered: string } {
  const text = textOf(model, 'chat')
  const turns = chat.messages.map((message): ChatMessage => {
    const turn: ChatMessage = { role: message.role, content: message.content }
    if (message.name !== '') turn.name = message.name
    if (message.tool_call_id !== '') turn.tool_call_id = message.tool_call_id
    if (message.tool_calls_json.length > 0) turn.tool_calls = message.tool_calls_json
    if (message.reasoning_content !== '') turn.reasoning_content = message.reasoning_content
    return turn
  })
  const last = turns.at(-1)
  if (chat.continue_final_message && last?.role !== 'assistant') {
    throw invalid('chat.continue_final_message', 'needs a last message with the role "assistant"')
  }
  const tools = chat.tools_json.length > 0 ? chat.tools_json : null
  const rendered = text.renderChat(turns, tools, chat.template_kwargs_json, chat.continue_final_message)
  checkTextBytes('chat', rendered, model)
  return { ids: text.encode(rendered, { special: false }), rendered }
}

function checkTextBytes(field: string, text: string, model: ServedModel): void {
  const bytesMax = promptBytesPerToken * model.engine.limits.contextLength
  const bytes = Buffer.byteLength(text)
  if (bytes <= bytesMax) return
  throw invalid(field, `has ${bytes} bytes; the context of ${model.manifest.name} never holds more than ${bytesMax}`)
}

/** Errors: INVALID_ARGUMENT. */
export function checkIds(field: string, ids: readonly number[], model: ServedModel): void {
  const { vocabulary } = model.manifest.spec
  const index = ids.findIndex((id) => id >= vocabulary)
  if (index < 0) return
  throw invalid(`${field}[${index}]`, `${ids[index]} is not in the vocabulary; ids are from 0 to ${vocabulary - 1}`)
}

function logprobsOf(field: string, wanted: number | undefined, model: ServedModel): number | null {
  if (wanted === undefined) return null
  const { vocabulary } = model.manifest.spec
  if (wanted > vocabulary) throw invalid(field, `${wanted} is more than the vocabulary; -1 gives all ${vocabulary}`)
  return wanted
}

function checkPromptLogprobBytes(wanted: number | null, promptTokens: number, model: ServedModel): void {
  if (wanted !== -1) return
  const tokensMax = Math.floor(promptLogprobBytesMax / (4 * model.manifest.spec.vocabulary))
  if (promptTokens <= tokensMax) return
  throw invalid(
    'output.prompt_logprobs',
    `-1 is allowed for prompts of at most ${tokensMax} tokens with this vocabulary, and this one has ${promptTokens}`,
  )
}

function samplingOf(
  message: GenerateRequestMessage,
  model: ServedModel,
  promptTokens: number,
  drawSeed: () => bigint,
): SamplingOptions {
  const { generation, spec } = model.manifest
  const given = message.sampling
  const stopTokenIds = given?.stop_token_ids ?? []
  checkIds('sampling.stop_token_ids', stopTokenIds, model)
  const bias = given?.logit_bias ?? []
  const stray = bias.find(({ key }) => key >= spec.vocabulary)
  if (stray !== undefined) {
    throw invalid(
      'sampling.logit_bias',
      `${stray.key} is not in the vocabulary; ids are from 0 to ${spec.vocabulary - 1}`,
    )
  }
  const room = model.engine.limits.contextLength - promptTokens
  const maxTokens = Math.min(given?.max_tokens ?? room, room)
  const minTokens = given?.min_tokens ?? 0
  if (given?.max_tokens !== undefined && minTokens > given.max_tokens) {
    throw invalid('sampling.min_tokens', `${minTokens} is more than max_tokens, ${given.max_tokens}`)
  }
  return {
    temperature: given?.temperature ?? generation.temperature ?? 1,
    topK: Math.max(0, given?.top_k ?? generation.topK ?? 0),
    topP: given?.top_p ?? generation.topP ?? 1,
    minP: given?.min_p ?? generation.minP ?? 0,
    seed: given?.seed === undefined ? drawSeed() : BigInt(given.seed),
    maxTokens,
    minTokens,
    stopTokenIds: new Set(given?.ignore_eos === true ? stopTokenIds : [...spec.eosTokenIds, ...stopTokenIds]),
    repetitionPenalty: given?.repetition_penalty ?? generation.repetitionPenalty ?? 1,
    frequencyPenalty: given?.frequency_penalty ?? 0,
    presencePenalty: given?.presence_penalty ?? 0,
    logitBias: new Map(bias.map(({ key, value }) => [key, value])),
  }
}

function invalid(field: string, message: string): MoeshError {
  return new MoeshError('INVALID_ARGUMENT', `${field}: ${message}`)
}
