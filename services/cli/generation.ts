import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import type { ApiClient } from './client.ts'

const responseSchema = z.object({
  request_id: z.string(),
  prompt: z
    .object({
      token_ids: z.array(z.number()),
      tokens: z.array(z.object({ id: z.number(), logprobs: z.object({ chosen: z.number() }).nullable() })),
      seed: z.string(),
      cached_tokens: z.number(),
      model: z.string(),
      fingerprint: z.string(),
    })
    .nullable(),
  delta: z
    .object({
      tokens: z.array(z.object({ id: z.number() })),
      text: z.string(),
      finish: z.object({ reason: z.string(), stop_string: z.string(), stop_token_id: z.number() }).nullable(),
    })
    .nullable(),
  usage: z
    .object({
      prompt_tokens: z.number(),
      cached_tokens: z.number(),
      output_tokens: z.number(),
      queue_seconds: z.number(),
      time_to_first_token_seconds: z.number(),
      total_seconds: z.number(),
      retried_dispatches: z.number(),
      resumed: z.number(),
    })
    .nullable(),
})
type Response = z.infer<typeof responseSchema>

export type GenerationResult = {
  prompt: NonNullable<Response['prompt']>
  ids: number[]
  text: string
  finish: NonNullable<NonNullable<Response['delta']>['finish']> | null
  usage: NonNullable<Response['usage']>
}

/** A coordinator that ended comes back, or another takes its address, within seconds. */
const resumesMax = 20
const resumeAfterMs = 500

/**
 * Runs one request of one candidate to its end. A stream that breaks is resumed, so that the death of a coordinator
 * behind the address shows as a pause. `onText` gets the text as it comes. Errors: those of the server.
 */
export async function runGeneration(
  client: ApiClient,
  request: { request_id: string; [field: string]: unknown },
  onText: (text: string) => void = () => {},
  signal?: AbortSignal,
): Promise<GenerationResult> {
  let prompt: GenerationResult['prompt'] | null = null
  let usage: GenerationResult['usage'] | null = null
  const result = { ids: [] as number[], text: '', finish: null as GenerationResult['finish'] }
  for (let attempt = 0; usage === null; attempt++) {
    try {
      const stream =
        prompt === null
          ? client.stream('moesh.v1.Inference/Generate', request, signal)
          : client.stream('moesh.v1.Inference/Resume', resumeOf(request.request_id, result.ids.length), signal)
      for await (const message of stream) {
        const response = responseSchema.parse(message)
        prompt ??= response.prompt
        usage = response.usage ?? usage
        if (response.delta === null) continue
        result.ids.push(...response.delta.tokens.map(({ id }) => id))
        result.text += response.delta.text
        result.finish = response.delta.finish ?? result.finish
        onText(response.delta.text)
      }
      if (usage === null) throw new MoeshError('SERVER_UNREACHABLE', 'the stream ended before its time')
    } catch (thrown) {
      const mayResume = thrown instanceof MoeshError && thrown.code === 'SERVER_UNREACHABLE' && prompt !== null
      if (!mayResume || attempt >= resumesMax || signal?.aborted === true) throw thrown
      await sleep(resumeAfterMs)
    }
  }
  if (prompt === null) throw new MoeshError('INTERNAL', 'the stream had no prompt message')
  return { prompt, usage, ...result }
}

/** Maps are lists of entries here, as in the descriptor set. */
function resumeOf(requestId: string, received: number): object {
  return { request_id: requestId, received: [{ key: 0, value: received }] }
}
