import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import type { ResolvedRequest } from './resolve.ts'

/** The journal's form of a request. All coordinators of a cluster read it, so fields are added, never renamed. */
const logprobs = z.int().min(-1).nullable()
const ids = z.array(z.int().nonnegative())

const storedRequest = z.object({
  engine: z.object({
    id: z.string(),
    promptIds: ids.min(1),
    candidates: z.int().positive(),
    priority: z.int(),
    cacheSalt: z.string().default(''),
    sampling: z.object({
      temperature: z.number().nonnegative(),
      topK: z.int().nonnegative(),
      topP: z.number(),
      minP: z.number(),
      seed: z.string().transform((text) => BigInt(text)),
      maxTokens: z.int().nonnegative(),
      minTokens: z.int().nonnegative(),
      stopTokenIds: ids.transform((list): ReadonlySet<number> => new Set(list)),
      repetitionPenalty: z.number(),
      frequencyPenalty: z.number(),
      presencePenalty: z.number(),
      logitBias: z
        .array(z.tuple([z.int().nonnegative(), z.number()]))
        .transform((list): ReadonlyMap<number, number> => new Map(list)),
    }),
    output: z.object({
      logprobs,
      promptLogprobs: logprobs,
      expertTrace: z.boolean(),
      promptExpertTrace: z.boolean(),
    }),
  }),
  model: z.string(),
  fingerprint: z.string(),
  stop: z.array(z.string()),
  text: z.object({ isWanted: z.boolean(), includesStop: z.boolean(), skipsSpecial: z.boolean() }),
})

export function storeRequest(request: ResolvedRequest): string {
  const { sampling } = request.engine
  return JSON.stringify({
    ...request,
    engine: {
      ...request.engine,
      sampling: {
        ...sampling,
        seed: String(sampling.seed),
        stopTokenIds: [...sampling.stopTokenIds],
        logitBias: [...sampling.logitBias],
      },
    },
  })
}

/** Errors: RESUME_IMPOSSIBLE where another version wrote what this one cannot read. */
export function readStoredRequest(text: string): ResolvedRequest {
  try {
    return storedRequest.parse(JSON.parse(text))
  } catch (cause) {
    throw new MoeshError('RESUME_IMPOSSIBLE', 'the journal entry of this request cannot be read', 'send it again', {
      cause,
    })
  }
}
