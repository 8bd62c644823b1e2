import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import type { PublishedConfig, TensorNames } from '../family.ts'
import type { AttentionSpec, DenseFfnSpec, LayerSpec, ModelSpec } from '../spec.ts'
import { flag, integer, number, optionalInteger, optionalTokenId, tokenIds } from './config-keys.ts'
import { ropeOf } from './rope.ts'

/** What most families have in common: keys, names and the plain parts of a decoder. */

/** No published model has more. */
const layersMax = 1024

export type DecoderDefaults = {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_hidden_layers: number
  num_attention_heads: number
  /** null: as many as heads. */
  num_key_value_heads: number | null
  max_position_embeddings: number
  rms_norm_eps: number
  bos_token_id: number | null
  eos_token_id: number | null
}

/** The keys that these families share, for `z.object({ ...decoderKeys(…), … })`. */
export function decoderKeys(defaults: DecoderDefaults) {
  return {
    vocab_size: integer(defaults.vocab_size),
    hidden_size: integer(defaults.hidden_size),
    intermediate_size: integer(defaults.intermediate_size),
    num_hidden_layers: integer(defaults.num_hidden_layers).refine(
      (layers) => layers <= layersMax,
      `more than ${layersMax}`,
    ),
    num_attention_heads: integer(defaults.num_attention_heads),
    // Missing is the family's default, null is "as many as heads".
    num_key_value_heads: z.int().positive().nullable().default(defaults.num_key_value_heads),
    head_dim: optionalInteger(),
    hidden_act: z.string().default('silu'),
    max_position_embeddings: integer(defaults.max_position_embeddings),
    rms_norm_eps: number(defaults.rms_norm_eps),
    tie_word_embeddings: flag(false),
    bos_token_id: optionalTokenId(defaults.bos_token_id),
    eos_token_id: tokenIds(defaults.eos_token_id === null ? [] : [defaults.eos_token_id]),
  }
}

type DecoderKeys = z.infer<z.ZodObject<ReturnType<typeof decoderKeys>>>

export type AttentionOptions = {
  theta: number
  /** Where the config has none and it is not hidden / heads. */
  headDim?: number
  qkNorm?: AttentionSpec['qkNorm']
  clip?: number | null
  /** On q, k, v and o. */
  bias?: boolean
}

/**
 * The attention of every layer, without a window. Throws CHECKPOINT_INVALID where sizes do not fit together, and
 * MODEL_UNSUPPORTED for heads that attention does not compute.
 */
export function attentionOf(config: PublishedConfig, keys: DecoderKeys, options: AttentionOptions): AttentionSpec {
  const heads = keys.num_attention_heads
  const kvHeads = keys.num_key_value_heads ?? heads
  const headDim = keys.head_dim ?? options.headDim ?? keys.hidden_size / heads
  if (!Number.isInteger(headDim)) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${config.path}: hidden_size (${keys.hidden_size}) is no multiple of num_attention_heads (${heads}), and head_dim is missing`,
    )
  }
  if (headDim % 4 !== 0) {
    const hint = 'multiples of 4 are'
    throw new MoeshError('MODEL_UNSUPPORTED', `${config.path}: heads of ${headDim} numbers are not supported`, hint)
  }
  if (heads % kvHeads !== 0) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${config.path}: num_attention_heads (${heads}) is no multiple of num_key_value_heads (${kvHeads})`,
    )
  }
  const bias = options.bias ?? false
  return {
    heads,
    kvHeads,
    headDim,
    scale: headDim ** -0.5,
    rope: ropeOf(config, headDim, options.theta),
    window: null,
    qkNorm: options.qkNorm ?? 'none',
    clip: options.clip ?? null,
    qkvBias: bias,
    outputBias: bias,
  }
}

export function decoderSpec(family: string, keys: DecoderKeys, layer: (index: number) => LayerSpec): ModelSpec {
  return {
    family,
    hidden: keys.hidden_size,
    vocabulary: keys.vocab_size,
    contextLength: keys.max_position_embeddings,
    normEps: keys.rms_norm_eps,
    tiedEmbeddings: keys.tie_word_embeddings,
    layers: Array.from({ length: keys.num_hidden_layers }, (_, index) => layer(index)),
    bosTokenId: keys.bos_token_id,
    eosTokenIds: keys.eos_token_id,
  }
}

export function denseFfn(inner: number, activation: DenseFfnSpec['activation'], bias = false): DenseFfnSpec {
  return { kind: 'dense', inner, activation, bias }
}

/** Throws CHECKPOINT_INVALID where more experts are chosen than there are. */
export function checkExperts(config: PublishedConfig, experts: number, expertsPerToken: number): void {
  if (expertsPerToken > experts) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${config.path}: num_experts_per_tok (${expertsPerToken}) exceeds the number of experts (${experts})`,
    )
  }
}

/** The names that these families share; `ffn` and `expert` replace or add. */
export function decoderNames(ffn: TensorNames['layer'], expert: TensorNames['expert'] = {}): TensorNames {
  return {
    embed: 'model.embed_tokens.weight',
    finalNorm: 'model.norm.weight',
    head: 'lm_head.weight',
    layerPrefix: 'model.layers.{layer}.',
    layer: {
      attention_norm: ['input_layernorm.weight'],
      q: ['self_attn.q_proj.weight'],
      k: ['self_attn.k_proj.weight'],
      v: ['self_attn.v_proj.weight'],
      o: ['self_attn.o_proj.weight'],
      q_bias: ['self_attn.q_proj.bias'],
      k_bias: ['self_attn.k_proj.bias'],
      v_bias: ['self_attn.v_proj.bias'],
      o_bias: ['self_attn.o_proj.bias'],
      q_norm: ['self_attn.q_norm.weight'],
      k_norm: ['self_attn.k_norm.weight'],
      ffn_norm: ['post_attention_layernorm.weight'],
      ...ffn,
    },
    expert,
  }
}

export const denseFfnNames: TensorNames['layer'] = {
  gate_up: ['mlp.gate_proj.weight', 'mlp.up_proj.weight'],
  down: ['mlp.down_proj.weight'],
  gate_up_bias: ['mlp.gate_proj.bias', 'mlp.up_proj.bias'],
  down_bias: ['mlp.down_proj.bias'],
}

/** Experts as olmoe and qwen publish them. */
export const expertNames: TensorNames['expert'] = {
  gate_up: ['mlp.experts.{expert}.gate_proj.weight', 'mlp.experts.{expert}.up_proj.weight'],
  down: ['mlp.experts.{expert}.down_proj.weight'],
}
export const routerNames: TensorNames['layer'] = { router: ['mlp.gate.weight'] }
