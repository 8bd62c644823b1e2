import type { ModelSpec } from '../../services/model/spec.ts'
import type { BenchShape } from '../shape.ts'

/** The model of a bench shape, without weights: dispatch and placement need no more than its sizes. */
export function specOf(shape: BenchShape): ModelSpec {
  const headDim = shape.hidden / shape.heads
  const inverseFrequencies = Array.from({ length: headDim / 2 }, (_, i) => shape.ropeTheta ** ((-2 * i) / headDim))
  return {
    family: 'olmoe',
    hidden: shape.hidden,
    vocabulary: shape.vocabulary,
    contextLength: shape.contextLength,
    normEps: shape.normEps,
    tiedEmbeddings: false,
    layers: Array.from({ length: shape.layers }, () => ({
      attention: {
        heads: shape.heads,
        kvHeads: shape.heads,
        headDim,
        scale: 1 / Math.sqrt(headDim),
        rope: { inverseFrequencies, attentionFactor: 1 },
        window: null,
        qkNorm: 'full',
        clip: null,
        qkvBias: false,
        outputBias: false,
      },
      ffn: {
        kind: 'moe',
        inner: shape.expertInner,
        activation: 'silu',
        experts: shape.experts,
        expertsPerToken: shape.expertsPerToken,
        router: { score: 'softmax', normalise: false },
      },
    })),
    bosTokenId: null,
    eosTokenIds: [],
  }
}

/** What an answer must begin with: tells that a row was computed, and by the right expert. */
export function marker(layer: number, expert: number): number {
  return layer * 65_536 + expert + 1
}
