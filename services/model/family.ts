import { MoeshError } from '../config/errors.ts'
import { familyOf } from './families/registry.ts'
import type { ModelSpec } from './spec.ts'
import { coordinatorTensors, expertTensors } from './tensors.ts'

/** A published config.json, with the differences between its two styles taken out (`checkpoint/config.ts`). */
export type PublishedConfig = {
  /** For messages. */
  path: string
  modelType: string | null
  architectures: readonly string[]
  rope: PublishedRope
  /** All keys as they stand. */
  values: Readonly<Record<string, unknown>>
}

export type PublishedRope = {
  /** The base; null: the family's default. */
  theta: number | null
  /** `default`, `linear`, `llama3`, … */
  type: string
  /** Further keys: `factor`, `low_freq_factor`, … */
  parameters: Readonly<Record<string, unknown>>
}

/**
 * One way in which models are published: how its config says what it is, and what its tensors are called. To add a
 * family is to add a file in `families/` and a line in its registry.
 */
export type Family = {
  name: string
  /** `model_type` of its configs. */
  modelTypes: readonly string[]
  /** `architectures` of its configs. */
  architectures: readonly string[]
  /** Throws MODEL_UNSUPPORTED or CHECKPOINT_INVALID, naming the key. */
  spec(config: PublishedConfig): ModelSpec
  names: TensorNames
}

/**
 * Names of a family's tensors, by our own (`tensors.ts`). Several names: their outputs lie side by side, in this order.
 * Matrices are published as [outputs, inputs].
 */
export type TensorNames = {
  embed: string
  finalNorm: string
  /** Of models whose head is a matrix of its own. */
  head: string
  /** `{layer}` stands for the layer's number. */
  layerPrefix: string
  /** By the part of our name behind `layers.N.`; behind the prefix. */
  layer: Readonly<Record<string, readonly string[]>>
  /** By `gate_up` and `down`; behind the prefix; `{expert}` stands for the expert's number. */
  expert: Readonly<Record<string, readonly string[]>>
}

/** What a tensor of ours is made of: published tensors, whose outputs lie side by side. */
export type TensorSources = { tensors: readonly string[] }

/** A checkpoint's model: its spec, and where each of our tensors comes from. */
export type PublishedModel = {
  spec: ModelSpec
  /** Of a tensor of `coordinatorTensors`. */
  sources(name: string): TensorSources
  /** Of a tensor of `expertTensors`. */
  expertSources(layer: number, expert: number, name: string): TensorSources
}

/** Throws MODEL_UNSUPPORTED for an unknown architecture (the choices are listed). */
export function publishedModel(config: PublishedConfig): PublishedModel {
  const { spec: makeSpec, names } = familyOf(config)
  const spec = makeSpec(config)
  const prefix = (layer: string) => names.layerPrefix.replace('{layer}', layer)
  return {
    spec,
    sources(name) {
      if (name === 'embed') return { tensors: [names.embed] }
      if (name === 'final_norm') return { tensors: [names.finalNorm] }
      if (name === 'head') return { tensors: [spec.tiedEmbeddings ? names.embed : names.head] }
      const [, layer, part] = /^layers\.(\d+)\.(\w+)$/.exec(name) ?? []
      const tensors = part === undefined ? undefined : names.layer[part]
      if (layer === undefined || tensors === undefined) throw unmapped(spec, name)
      return { tensors: tensors.map((tensor) => prefix(layer) + tensor) }
    },
    expertSources(layer, expert, name) {
      const tensors = names.expert[name]
      if (tensors === undefined) throw unmapped(spec, `experts.${name}`)
      return { tensors: tensors.map((tensor) => prefix(`${layer}`) + tensor.replace('{expert}', `${expert}`)) }
    },
  }
}

function unmapped(spec: ModelSpec, name: string): MoeshError {
  return new MoeshError('INTERNAL', `family ${spec.family} has no name for tensor ${name}`)
}

/** Weights of a model, and how many of them work on one token: experts that are not chosen do not. */
export function countParameters(spec: ModelSpec): { total: number; active: number } {
  const size = (shape: readonly number[]) => shape.reduce((product, axis) => product * axis, 1)
  let total = 0
  for (const { name, shape } of coordinatorTensors(spec)) {
    if (name !== 'head' || !spec.tiedEmbeddings) total += size(shape)
  }
  let active = total
  for (const { ffn } of spec.layers) {
    if (ffn.kind !== 'moe') continue
    const expert = expertTensors(spec, ffn).reduce((sum, { shape }) => sum + size(shape), 0)
    total += ffn.experts * expert
    active += ffn.expertsPerToken * expert
  }
  return { total, active }
}
