import { z } from 'zod'
import type { Family } from '../family.ts'
import { activationOf, flag, readKeys } from './config-keys.ts'
import { attentionOf, decoderKeys, decoderNames, decoderSpec, denseFfn, denseFfnNames } from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: null,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    bos_token_id: 1,
    eos_token_id: 2,
  }),
  attention_bias: flag(false),
  mlp_bias: flag(false),
})

/** Llama 2 and 3 and everything published in their layout. */
export const llama: Family = {
  name: 'llama',
  modelTypes: ['llama'],
  architectures: ['LlamaForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    const attention = attentionOf(config, keys, { theta: 10000, bias: keys.attention_bias })
    const ffn = denseFfn(keys.intermediate_size, activationOf(keys.hidden_act, config), keys.mlp_bias)
    return decoderSpec(llama.name, keys, () => ({ attention, ffn }))
  },
  names: decoderNames(denseFfnNames),
}
