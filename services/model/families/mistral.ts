import { z } from 'zod'
import type { Family } from '../family.ts'
import { activationOf, readKeys } from './config-keys.ts'
import { attentionOf, decoderKeys, decoderNames, decoderSpec, denseFfn, denseFfnNames } from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    max_position_embeddings: 4096 * 32,
    rms_norm_eps: 1e-6,
    bos_token_id: 1,
    eos_token_id: 2,
  }),
  // Missing is the default of 4096, null is "no window".
  sliding_window: z.int().positive().nullable().default(4096),
})

/** Mistral: llama's layout; all layers have the window or none. */
export const mistral: Family = {
  name: 'mistral',
  modelTypes: ['mistral'],
  architectures: ['MistralForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    const attention = { ...attentionOf(config, keys, { theta: 10000 }), window: keys.sliding_window }
    const ffn = denseFfn(keys.intermediate_size, activationOf(keys.hidden_act, config))
    return decoderSpec(mistral.name, keys, () => ({ attention, ffn }))
  },
  names: decoderNames(denseFfnNames),
}
