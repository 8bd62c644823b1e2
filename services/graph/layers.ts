import type { WeightFormat } from '../model/format.ts'
import type { Activation } from '../model/spec.ts'
import { type Graph, GraphBuilder, type Weight } from './graph.ts'
import {
  activationRows,
  activations,
  decodeActivations,
  encodeRows8,
  encodeRows16,
  joinHalves,
  type LinearWeights,
  linear,
  multiply,
} from './linear.ts'

/** The graphs of a forward pass, in its order. M: rows, H: hidden. Every weight is a constant, so that it is prepacked. */

export type NormWeights = { weight: Weight; eps: number }

/** x / sqrt(mean(x²) + eps) * weight, row by row. */
function rmsNorm(g: GraphBuilder, rows: string, name: string, norm: NormWeights): string {
  return g.op('SimplifiedLayerNormalization', [rows, g.weight(name, norm.weight)], {
    axis: { int: -1 },
    epsilon: { float: norm.eps },
  })
}

/** activation(gate) * up of [M, 2F], gate first (GLU variants: Shazeer, arXiv 2002.05202). */
function gated(g: GraphBuilder, gateUp: string, activation: Activation): string {
  const [gate = '', up = ''] = g.split(gateUp, 1, 2)
  return g.op('Mul', [activate(g, gate, activation), up])
}

function activate(g: GraphBuilder, x: string, activation: Activation): string {
  switch (activation) {
    case 'silu':
      return g.op('Mul', [x, g.op('Sigmoid', [x])])
    case 'gelu_tanh':
      return g.op('Gelu', [x], { approximate: { text: 'tanh' } })
  }
}

/** `x` [M, inputs] → `y` [M, outputs]: an optional norm, a linear layer, and for `gate_up` layers the activation. */
export function projectionGraph(
  weights: LinearWeights,
  options: { norm?: NormWeights; gated?: Activation } = {},
): Graph {
  const g = new GraphBuilder()
  const x = g.input('x', 'f32', ['M', weights.inputs])
  const rows = options.norm ? rmsNorm(g, x, 'norm', options.norm) : x
  const product = linear(g, 'linear', rows, weights)
  const width = options.gated ? weights.outputs / 2 : weights.outputs
  g.output('y', options.gated ? gated(g, product, options.gated) : product, 'f32', ['M', width])
  return g.graph
}

/**
 * `x` [M, H] → `logits` [M, experts] f32, and the normed rows as they travel to the experts: `rows` [M, rowBytes] u8
 * with `scales` [M, 1], or `rows` [M, H] f32. The router's product is f32 in every format.
 */
export function routerGraph(options: {
  format: WeightFormat
  hidden: number
  experts: number
  norm: NormWeights
  router: Weight
}): Graph {
  const { format, hidden, experts } = options
  const g = new GraphBuilder()
  const normed = rmsNorm(g, g.input('x', 'f32', ['M', hidden]), 'norm', options.norm)
  g.output('logits', g.op('MatMul', [normed, g.weight('router', options.router)]), 'f32', ['M', experts])
  if (format === 'f32' || format === 'int4') {
    g.output('rows', normed, 'f32', ['M', hidden])
  } else {
    const encoded = format === 'int8' ? encodeRows16(g, normed) : encodeRows8(g, normed)
    g.output('rows', encoded.data, 'u8', ['M', format === 'int8' ? 2 * hidden : hidden])
    g.output('scales', encoded.scale, 'f32', ['M', 1])
  }
  return g.graph
}

export type ExpertWeights = { gateUp: LinearWeights; down: LinearWeights }

/**
 * Several experts of one layer. Inputs: the rows of all of them, sorted by expert, as they were dispatched (`rows`,
 * `scales`), and `counts` [experts] int64, zeros allowed. Output `y` [M, H] f32 in the same order.
 */
export function expertGraph(
  format: WeightFormat,
  hidden: number,
  activation: Activation,
  experts: readonly ExpertWeights[],
): Graph {
  const g = new GraphBuilder()
  const counts = g.input('counts', 'i64', [experts.length])
  const productRows = activationRows(format) === 1 ? counts : g.op('Add', [counts, counts])
  const inner = experts[0]?.down.inputs ?? 0

  const grouped = (
    input: ReturnType<typeof activations>,
    name: string,
    weightsOf: (expert: ExpertWeights) => LinearWeights,
    outputs: number,
  ): string => {
    const products =
      input.kind === 'plain'
        ? g.split(input.rows, 0, experts.length, productRows).map((rows, index) => {
            const expert = experts[index]
            if (!expert) throw new Error('fewer experts than splits')
            return multiply(g, `${name}.${index}`, { kind: 'plain', rows }, weightsOf(expert))
          })
        : quantisedProducts(input.q, input.scale)
    return joinHalves(g, format, g.concat(products, 0), outputs)

    function quantisedProducts(q: string, scale: string): string[] {
      const scales = g.split(scale, 0, experts.length, productRows)
      return g.split(q, 0, experts.length, productRows).map((part, index) => {
        const expert = experts[index]
        const partScale = scales[index]
        if (!expert || partScale === undefined) throw new Error('fewer experts than splits')
        return multiply(g, `${name}.${index}`, { kind: 'quantised', q: part, scale: partScale }, weightsOf(expert))
      })
    }
  }

  const gateUp = grouped(dispatchedRows(g, format, hidden), 'gate_up', (expert) => expert.gateUp, 2 * inner)
  const activated = activations(g, format, gated(g, gateUp, activation), inner)
  g.output(
    'y',
    grouped(activated, 'down', (expert) => expert.down, hidden),
    'f32',
    ['M', hidden],
  )
  return g.graph
}

function dispatchedRows(g: GraphBuilder, format: WeightFormat, hidden: number): ReturnType<typeof activations> {
  if (format === 'f32' || format === 'int4') return { kind: 'plain', rows: g.input('rows', 'f32', ['M', hidden]) }
  const data = g.input('rows', 'u8', ['M', format === 'int8' ? 2 * hidden : hidden])
  return decodeActivations(g, format, { data, scale: g.input('scales', 'f32', ['M', 1]) }, hidden)
}
