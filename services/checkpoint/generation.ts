import { join } from 'node:path'
import { z } from 'zod'
import { readJsonFile } from './json-file.ts'

const tokenId = z.int().nonnegative()
const schema = z.looseObject({
  do_sample: z.boolean().nullish(),
  temperature: z.number().nonnegative().nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z.int().nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().positive().nullish(),
  bos_token_id: z.union([tokenId, z.array(tokenId)]).nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId).max(64)]).nullish(),
})

/** What generation_config.json says: null is "nothing". */
export type GenerationDefaults = {
  sampling: {
    /** 0: greedy. */
    temperature: number | null
    topP: number | null
    /** 0: off. */
    topK: number | null
    minP: number | null
    repetitionPenalty: number | null
  }
  bosTokenId: number | null
  eosTokenIds: number[] | null
}

/** All null where the checkpoint has no such file. Throws CHECKPOINT_INVALID. */
export function readGeneration(directory: string): GenerationDefaults {
  const values = readJsonFile(join(directory, 'generation_config.json'), schema) ?? {}
  const bos = [values.bos_token_id ?? []].flat()
  return {
    sampling: {
      // "Do not sample" is greedy, whatever temperature stands beside it.
      temperature: values.do_sample === false ? 0 : (values.temperature ?? null),
      topP: values.top_p === 0 ? null : (values.top_p ?? null),
      topK: values.top_k == null ? null : Math.max(0, values.top_k),
      minP: values.min_p ?? null,
      repetitionPenalty: values.repetition_penalty ?? null,
    },
    bosTokenId: bos[0] ?? null,
    eosTokenIds: values.eos_token_id == null ? null : [values.eos_token_id].flat(),
  }
}
