import type { WeightFormat } from './format.ts'
import { linearParts, partBytes } from './format.ts'
import type { LayerSpec, ModelSpec, MoeFfnSpec } from './spec.ts'

/**
 * The names that a pack gives to a model's tensors, whatever its family. A `linear` tensor is stored as its parts
 * (`format.ts`) under `NAME.PART`; all others as one tensor NAME. Linear layers are `[inputs, outputs]`.
 */
export type TensorSpec = {
  name: string
  /** `linear`: in the pack's weight format. `embedding`: rows in the checkpoint's dtype. `vector`, `router`: f32. */
  kind: 'linear' | 'embedding' | 'vector' | 'router'
  /** linear, router: [inputs, outputs]; embedding: [vocabulary, hidden]; vector: [size]. */
  shape: number[]
}

const linear = (name: string, inputs: number, outputs: number): TensorSpec => ({
  name,
  kind: 'linear',
  shape: [inputs, outputs],
})
const vector = (name: string, size: number): TensorSpec => ({ name, kind: 'vector', shape: [size] })

/** Everything of a model but its routed experts, in the order of the forward pass. */
export function coordinatorTensors(spec: ModelSpec): TensorSpec[] {
  return [
    { name: 'embed', kind: 'embedding', shape: [spec.vocabulary, spec.hidden] },
    ...spec.layers.flatMap((layer, index) => layerTensors(spec, layer, `layers.${index}`)),
    vector('final_norm', spec.hidden),
    linear('head', spec.hidden, spec.vocabulary),
  ]
}

function layerTensors(spec: ModelSpec, layer: LayerSpec, prefix: string): TensorSpec[] {
  const { attention, ffn } = layer
  const queries = attention.heads * attention.headDim
  const keys = attention.kvHeads * attention.headDim
  const normSize = (width: number) => (attention.qkNorm === 'full' ? width : attention.headDim)
  const tensors = [
    vector(`${prefix}.attention_norm`, spec.hidden),
    linear(`${prefix}.q`, spec.hidden, queries),
    linear(`${prefix}.k`, spec.hidden, keys),
    linear(`${prefix}.v`, spec.hidden, keys),
    linear(`${prefix}.o`, queries, spec.hidden),
    vector(`${prefix}.ffn_norm`, spec.hidden),
  ]
  if (attention.qkvBias) {
    tensors.push(
      vector(`${prefix}.q_bias`, queries),
      vector(`${prefix}.k_bias`, keys),
      vector(`${prefix}.v_bias`, keys),
    )
  }
  if (attention.outputBias) tensors.push(vector(`${prefix}.o_bias`, spec.hidden))
  if (attention.qkNorm !== 'none') {
    tensors.push(vector(`${prefix}.q_norm`, normSize(queries)), vector(`${prefix}.k_norm`, normSize(keys)))
  }
  if (ffn.kind === 'moe') {
    tensors.push({ name: `${prefix}.router`, kind: 'router', shape: [spec.hidden, ffn.experts] })
  } else {
    // Gate columns first, then up.
    tensors.push(
      linear(`${prefix}.gate_up`, spec.hidden, 2 * ffn.inner),
      linear(`${prefix}.down`, ffn.inner, spec.hidden),
    )
    if (ffn.bias) {
      tensors.push(vector(`${prefix}.gate_up_bias`, 2 * ffn.inner), vector(`${prefix}.down_bias`, spec.hidden))
    }
  }
  return tensors
}

/** Both matrices of one routed expert; gate columns first, then up. */
export function expertTensors(spec: ModelSpec, ffn: MoeFfnSpec): TensorSpec[] {
  return [linear('gate_up', spec.hidden, 2 * ffn.inner), linear('down', ffn.inner, spec.hidden)]
}

export type ShardPart = {
  name: string
  dtype: 'f32' | 'i8' | 'u8' | 'bf16' | 'f16'
  shape: number[]
  offset: number
  bytes: number
}
export const tensorAlignment = 64

/** Where the parts of an expert lie in its shard: `gate_up.q` and so on, each at a multiple of 64 bytes. */
export function shardLayout(
  spec: ModelSpec,
  ffn: MoeFfnSpec,
  format: WeightFormat,
): { parts: ShardPart[]; bytes: number } {
  let offset = 0
  const parts: ShardPart[] = []
  for (const tensor of expertTensors(spec, ffn)) {
    const [inputs = 0, outputs = 0] = tensor.shape
    for (const part of linearParts(format, inputs, outputs)) {
      const bytes = partBytes(part)
      parts.push({ name: `${tensor.name}.${part.name}`, dtype: part.dtype, shape: part.shape, offset, bytes })
      offset += Math.ceil(bytes / tensorAlignment) * tensorAlignment
    }
  }
  return { parts, bytes: offset }
}
