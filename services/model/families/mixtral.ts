import { z } from 'zod'
import type { Family } from '../family.ts'
import { activationOf, integer, optionalInteger, readKeys } from './config-keys.ts'
import { attentionOf, checkExperts, decoderKeys, decoderNames, decoderSpec } from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    max_position_embeddings: 4096 * 32,
    rms_norm_eps: 1e-5,
    bos_token_id: 1,
    eos_token_id: 2,
  }),
  sliding_window: optionalInteger(),
  num_local_experts: integer(8),
  num_experts_per_tok: integer(2),
})

/** Mixtral: experts in every layer; their weights are divided by their sum. */
export const mixtral: Family = {
  name: 'mixtral',
  modelTypes: ['mixtral'],
  architectures: ['MixtralForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    checkExperts(config, keys.num_local_experts, keys.num_experts_per_tok)
    const attention = { ...attentionOf(config, keys, { theta: 1e6 }), window: keys.sliding_window }
    const activation = activationOf(keys.hidden_act, config)
    return decoderSpec(mixtral.name, keys, () => ({
      attention,
      ffn: {
        kind: 'moe',
        inner: keys.intermediate_size,
        activation,
        experts: keys.num_local_experts,
        expertsPerToken: keys.num_experts_per_tok,
        router: { score: 'softmax', normalise: true },
      },
    }))
  },
  // w1 is the gate, w3 the up projection, w2 the way back.
  names: decoderNames(
    { router: ['block_sparse_moe.gate.weight'] },
    {
      gate_up: ['block_sparse_moe.experts.{expert}.w1.weight', 'block_sparse_moe.experts.{expert}.w3.weight'],
      down: ['block_sparse_moe.experts.{expert}.w2.weight'],
    },
  ),
}
