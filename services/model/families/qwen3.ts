import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import type { Family, PublishedConfig } from '../family.ts'
import { activationOf, flag, readKeys } from './config-keys.ts'
import { attentionOf, decoderKeys, decoderNames, decoderSpec, denseFfn, denseFfnNames } from './decoder.ts'

const schema = z.object({
  ...decoderKeys({
    vocab_size: 151936,
    hidden_size: 4096,
    intermediate_size: 22016,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    bos_token_id: null,
    eos_token_id: null,
  }),
  attention_bias: flag(false),
  use_sliding_window: flag(false),
  sliding_window: z.int().positive().nullable().default(4096),
  max_window_layers: z.int().nonnegative().default(28),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).nullish(),
})
type Keys = z.infer<typeof schema>

/** Qwen3: every head of q and k is normed. */
export const qwen3: Family = {
  name: 'qwen3',
  modelTypes: ['qwen3'],
  architectures: ['Qwen3ForCausalLM'],
  spec(config) {
    const keys = readKeys(config, schema)
    const full = attentionOf(config, keys, { theta: 10000, headDim: 128, qkNorm: 'head', bias: keys.attention_bias })
    const sliding = { ...full, window: keys.use_sliding_window ? keys.sliding_window : null }
    const ffn = denseFfn(keys.intermediate_size, activationOf(keys.hidden_act, config))
    const slides = slidingLayers(config, keys)
    return decoderSpec(qwen3.name, keys, (index) => ({ attention: slides(index) ? sliding : full, ffn }))
  },
  names: decoderNames(denseFfnNames),
}

/** `layer_types` if given, else the layers from `max_window_layers` on. */
function slidingLayers(config: PublishedConfig, keys: Keys): (layer: number) => boolean {
  const { layer_types: types, num_hidden_layers: layers } = keys
  if (!types) return (layer) => layer >= keys.max_window_layers
  if (types.length !== layers) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${config.path}: layer_types has ${types.length} entries for ${layers} layers`,
    )
  }
  return (layer) => types[layer] === 'sliding_attention'
}
