import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import {
  cacheSaltCharsMax,
  candidatesMax,
  chatMessagesMax,
  clientCharsMax,
  detokenizeIdsMax,
  logitBiasMax,
  requestIdCharsMax,
  stopStringCharsMax,
  stopStringsMax,
  stopTokenIdsMax,
  toolsMax,
} from '../../config/limits.ts'

/**
 * Messages of the public protos as `loadProtos` decodes and encodes them. Requests are schemas, which check all that
 * can be known without the model; responses are types.
 */

/** Errors: INVALID_ARGUMENT with the field's name as the proto has it, and what is allowed. */
export function readRequest<T>(schema: z.ZodType<T>, message: unknown): T {
  const result = schema.safeParse(message)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const path = issue?.path.map((step) => (typeof step === 'number' ? `[${step}]` : `.${String(step)}`)).join('') ?? ''
  throw new MoeshError('INVALID_ARGUMENT', `${path.replace(/^\./, '')}: ${issue?.message ?? 'is not valid'}`)
}

/** Protobuf's floats may be infinite or not a number: a range excludes those too. */
function numberWhere(isAllowed: (value: number) => boolean, allowed: string) {
  return z.custom<number>((value) => typeof value === 'number' && isAllowed(value), {
    error: ({ input }) => `${String(input)} is not allowed; it must be ${allowed}`,
  })
}

const between = (low: number, high: number) =>
  numberWhere((value) => value >= low && value <= high, `from ${low} to ${high}`)

const shortString = (charsMax: number) =>
  z.string().max(charsMax, { error: `is too long; at most ${charsMax} characters are allowed` })

const atMost = <T>(item: z.ZodType<T>, itemsMax: number) =>
  z.array(item).max(itemsMax, {
    error: ({ input }) => `has ${Array.isArray(input) ? input.length : 0} entries; at most ${itemsMax} are allowed`,
  })

/** A field that holds JSON. `what` says what is allowed. */
function json<T>(schema: z.ZodType<T>, what: string) {
  return z.string().transform((text, context) => {
    try {
      return schema.parse(JSON.parse(text))
    } catch {
      context.addIssue({ code: 'custom', message: `is not ${what}` })
      return z.NEVER
    }
  })
}

/** The same, where unset (empty) means `unset`. */
function jsonOr<T>(unset: string, schema: z.ZodType<T>, what: string) {
  return z
    .string()
    .transform((text) => (text === '' ? unset : text))
    .pipe(json(schema, what))
}

const jsonObject = z.record(z.string(), z.unknown())

const chatMessage = z.object({
  role: z
    .string()
    .min(1, { error: 'is empty; it must be "system", "user", "assistant", "tool" or what the template knows' }),
  content: z.string(),
  name: z.string(),
  tool_call_id: z.string(),
  tool_calls_json: jsonOr('[]', z.array(jsonObject), 'a JSON array of objects'),
  reasoning_content: z.string(),
})

const chat = z.object({
  messages: atMost(chatMessage, chatMessagesMax).min(1, { error: 'is empty; at least one message is needed' }),
  tools_json: atMost(json(jsonObject, 'a JSON object'), toolsMax),
  template_kwargs_json: jsonOr('{}', jsonObject, 'a JSON object'),
  continue_final_message: z.boolean(),
})

const tokenIds = z.object({ ids: z.array(z.number()) })

const sampling = z.object({
  temperature: numberWhere((t) => t >= 0 && t <= 1000, '0 (greedy) or more, at most 1000').optional(),
  top_p: numberWhere((p) => p > 0 && p <= 1, 'above 0 and at most 1').optional(),
  top_k: numberWhere((k) => k >= -1, '1 or more, or 0 or -1 for off').optional(),
  min_p: between(0, 1).optional(),
  seed: z.string().optional(),
  max_tokens: z.number().optional(),
  min_tokens: z.number(),
  stop: atMost(
    z
      .string()
      .min(1, { error: 'is empty; a stop string needs at least one character' })
      .max(stopStringCharsMax, {
        error: `is too long; at most ${stopStringCharsMax} characters are allowed`,
      }),
    stopStringsMax,
  ),
  stop_token_ids: atMost(z.number(), stopTokenIdsMax),
  ignore_eos: z.boolean(),
  n: numberWhere((n) => n <= candidatesMax, `at most ${candidatesMax}`),
  repetition_penalty: numberWhere((p) => p > 0 && p <= 100, 'above 0 and at most 100; 1 is off').optional(),
  frequency_penalty: between(-2, 2),
  presence_penalty: between(-2, 2),
  logit_bias: atMost(
    z.object({ key: z.number(), value: numberWhere((b) => Math.abs(b) <= 1e6, 'from -1000000 to 1000000') }),
    logitBiasMax,
  ),
  constraint: z.null({ error: 'constrained output is not supported by this version; leave it unset' }),
})

const logprobs = numberWhere((wanted) => wanted >= -1, '-1 (the whole vocabulary), 0 or more')

const output = z.object({
  logprobs: logprobs.optional(),
  prompt_logprobs: logprobs.optional(),
  expert_trace: z.boolean(),
  prompt_expert_trace: z.boolean(),
  include_stop: z.boolean(),
  skip_special_tokens: z.boolean(),
  no_text: z.boolean(),
})

const requestId = shortString(requestIdCharsMax).regex(/^[\x21-\x7e]*$/, {
  error: 'has blanks or characters outside ASCII; only visible ASCII is allowed',
})

export const generateRequest = z.object({
  model: z.string(),
  input: z.enum(['text', 'token_ids', 'chat'], { error: 'is unset; one of text, token_ids and chat is needed' }),
  text: z.string().optional(),
  token_ids: tokenIds.nullish(),
  chat: chat.nullish(),
  sampling: sampling.nullable(),
  output: output.nullable(),
  request_id: requestId,
  priority: z.number(),
  client: shortString(clientCharsMax),
  cache_salt: shortString(cacheSaltCharsMax),
})
export type GenerateRequestMessage = z.infer<typeof generateRequest>
export type ChatInput = z.infer<typeof chat>

const knownId = requestId.min(1, { error: 'is empty; it must be the id of a request' })

export const resumeRequest = z.object({
  request_id: knownId,
  received: z.array(z.object({ key: z.number(), value: z.number() })),
})

export const cancelRequest = z.object({ request_id: knownId })

export const tokenizeRequest = z.object({
  model: z.string(),
  input: z.enum(['text', 'chat'], { error: 'is unset; one of text and chat is needed' }),
  text: z.string().optional(),
  chat: chat.nullish(),
  no_special_tokens: z.boolean(),
})

export const detokenizeRequest = z.object({
  model: z.string(),
  ids: atMost(z.number(), detokenizeIdsMax),
  skip_special_tokens: z.boolean(),
})

export const getStatusRequest = z.object({ expert_load: z.boolean() })
export const watchEventsRequest = z.object({ last: z.number() })
export const nodeRequest = z.object({
  node: shortString(requestIdCharsMax).min(1, { error: 'is empty; it must be the id of a node' }),
})
export const rebalanceRequest = z.object({ dry_run: z.boolean() })

export type LogprobsMessage = {
  chosen: number
  rank: number
  top: { id: number; logprob: number }[]
  all: number[]
}

export type LayerExpertsMessage = { layer: number; expert_ids: number[]; weights: number[] }

export type TokenInfoMessage = { id: number; logprobs?: LogprobsMessage; experts?: LayerExpertsMessage[] }

export type FinishMessage = {
  reason: 'STOP' | 'LENGTH' | 'CANCELLED'
  stop_string?: string
  stop_token_id?: number
}

export type DeltaMessage = {
  candidate: number
  offset: number
  tokens: TokenInfoMessage[]
  text: string
  finish?: FinishMessage
}

export type PromptInfoMessage = {
  token_ids: number[]
  tokens: TokenInfoMessage[]
  seed: string
  cached_tokens: number
  model: string
  fingerprint: string
}

export type UsageMessage = {
  prompt_tokens: number
  cached_tokens: number
  output_tokens: number
  queue_seconds: number
  time_to_first_token_seconds: number
  total_seconds: number
  retried_dispatches: number
  resumed: number
}

export type GenerateResponseMessage = {
  request_id: string
  prompt?: PromptInfoMessage
  delta?: DeltaMessage
  usage?: UsageMessage
}

export type ModelMessage = {
  id: string
  digest: string
  family: string
  weight_format: string
  parameters: number
  active_parameters: number
  context_length: number
  vocabulary: number
  layers: number
  moe_layers: number
  experts: number
  experts_per_token: number
  license: string
  source: string
  fingerprint: string
  base: string
  chat_template: string
}
