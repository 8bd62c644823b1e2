/**
 * A model as plain data. A family (`families/`) makes it from a published config; packs carry it in their manifest;
 * graphs are built from it alone. Nothing outside `families/` knows a family's name.
 */
export type ModelSpec = {
  /** The family's name, for people and `ListModels`; no code decides by it. */
  family: string
  hidden: number
  vocabulary: number
  /** Longest sequence, in tokens. */
  contextLength: number
  normEps: number
  /** The head is the embedding matrix: the checkpoint has no matrix of its own for it. */
  tiedEmbeddings: boolean
  layers: LayerSpec[]
  bosTokenId: number | null
  /** Any of these ends a text. */
  eosTokenIds: number[]
}

export type LayerSpec = {
  attention: AttentionSpec
  ffn: DenseFfnSpec | MoeFfnSpec
}

export type AttentionSpec = {
  heads: number
  kvHeads: number
  headDim: number
  /** Scores are multiplied with this before the mask. */
  scale: number
  rope: RopeSpec
  /** Position i sees i-window+1 … i; null: everything before it. */
  window: number | null
  /** RMS norm of q and k before the rotation: over each head, over the whole vector, or not at all. */
  qkNorm: 'none' | 'head' | 'full'
  /** q, k and v are clamped to ±clip, after the norm. */
  clip: number | null
  qkvBias: boolean
  outputBias: boolean
}

/**
 * Rotary positions on halves of the head ("rotate half"). `inverseFrequencies[i]` turns components i and
 * i + headDim/2 by position * inverseFrequencies[i]; cos and sin are multiplied with `attentionFactor`.
 */
export type RopeSpec = {
  inverseFrequencies: number[]
  attentionFactor: number
}

/** `gelu_tanh`: the tanh approximation of gelu. Applied to the gate, which multiplies the up projection. */
export type Activation = 'silu' | 'gelu_tanh'

export type DenseFfnSpec = {
  kind: 'dense'
  inner: number
  activation: Activation
  bias: boolean
}

export type MoeFfnSpec = {
  kind: 'moe'
  inner: number
  activation: Activation
  experts: number
  expertsPerToken: number
  router: RouterSpec
}

export type RouterSpec = {
  /** Softmax over all experts, then the k best; `normalise` divides their weights by their sum. */
  score: 'softmax'
  normalise: boolean
}

/** Routed experts of a model: (layer, expert) pairs, the units of placement. */
export function moeLayers(spec: ModelSpec): { layer: number; ffn: MoeFfnSpec }[] {
  return spec.layers.flatMap((layer, index) => (layer.ffn.kind === 'moe' ? [{ layer: index, ffn: layer.ffn }] : []))
}
