import { z } from 'zod'
import type { Family } from '../family.ts'
import type { MoeFfnSpec } from '../spec.ts'
import { activationOf, flag, integer, optionalInteger, readKeys } from './config-keys.ts'
import {
  attentionOf,
  checkExperts,
  decoderKeys,
  decoderNames,
  decoderSpec,
  denseFfn,
  denseFfnNames,
  expertNames,
  routerNames,
} from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 151936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    bos_token_id: null,
    eos_token_id: null,
  }),
  attention_bias: flag(false),
  use_sliding_window: flag(false),
  sliding_window: z.int().positive().nullable().default(4096),
  moe_intermediate_size: integer(768),
  // Published configs say num_experts, transformers 5 writes num_local_experts.
  num_experts: optionalInteger(),
  num_local_experts: optionalInteger(),
  num_experts_per_tok: integer(8),
  norm_topk_prob: flag(false),
  decoder_sparse_step: integer(1),
  mlp_only_layers: z.array(z.int().nonnegative()).nullish(),
})

/** Qwen3-MoE: qwen3's attention (with the window on, all layers have it), experts in some or all layers. */
export const qwen3Moe: Family = {
  name: 'qwen3_moe',
  modelTypes: ['qwen3_moe'],
  architectures: ['Qwen3MoeForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    const experts = keys.num_experts ?? keys.num_local_experts ?? 128
    checkExperts(config, experts, keys.num_experts_per_tok)
    const activation = activationOf(keys.hidden_act, config)
    const attention = {
      ...attentionOf(config, keys, { theta: 10000, qkNorm: 'head', bias: keys.attention_bias }),
      window: keys.use_sliding_window ? keys.sliding_window : null,
    }
    const dense = denseFfn(keys.intermediate_size, activation)
    const sparse: MoeFfnSpec = {
      kind: 'moe',
      inner: keys.moe_intermediate_size,
      activation,
      experts,
      expertsPerToken: keys.num_experts_per_tok,
      router: { score: 'softmax', normalise: keys.norm_topk_prob },
    }
    const denseLayers = new Set(keys.mlp_only_layers ?? [])
    const isSparse = (layer: number) => !denseLayers.has(layer) && (layer + 1) % keys.decoder_sparse_step === 0
    return decoderSpec(qwen3Moe.name, keys, (layer) => ({ attention, ffn: isSparse(layer) ? sparse : dense }))
  },
  names: decoderNames({ ...denseFfnNames, ...routerNames }, expertNames),
}
