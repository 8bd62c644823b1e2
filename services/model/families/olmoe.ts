import { z } from 'zod'
import type { Family } from '../family.ts'
import { activationOf, flag, integer, optionalInteger, optionalNumber, readKeys } from './config-keys.ts'
import {
  attentionOf,
  checkExperts,
  decoderKeys,
  decoderNames,
  decoderSpec,
  expertNames,
  routerNames,
} from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 50304,
    hidden_size: 2048,
    intermediate_size: 2048,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    num_key_value_heads: null,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    bos_token_id: null,
    eos_token_id: 50279,
  }),
  attention_bias: flag(false),
  clip_qkv: optionalNumber(),
  num_experts: optionalInteger(),
  num_local_experts: optionalInteger(),
  num_experts_per_tok: integer(8),
  norm_topk_prob: flag(false),
})

/** OLMoE: q and k are normed over all heads together, then clamped; weights of experts need not sum to 1. */
export const olmoe: Family = {
  name: 'olmoe',
  modelTypes: ['olmoe'],
  architectures: ['OlmoeForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    const experts = keys.num_experts ?? keys.num_local_experts ?? 64
    checkExperts(config, experts, keys.num_experts_per_tok)
    const attention = attentionOf(config, keys, {
      theta: 10000,
      qkNorm: 'full',
      clip: keys.clip_qkv,
      bias: keys.attention_bias,
    })
    const activation = activationOf(keys.hidden_act, config)
    return decoderSpec(olmoe.name, keys, () => ({
      attention,
      ffn: {
        kind: 'moe',
        inner: keys.intermediate_size,
        activation,
        experts,
        expertsPerToken: keys.num_experts_per_tok,
        router: { score: 'softmax', normalise: keys.norm_topk_prob },
      },
    }))
  },
  names: decoderNames(routerNames, expertNames),
}
