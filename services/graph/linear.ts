import { int4Block, type WeightFormat } from '../model/format.ts'
import type { GraphBuilder, Weight } from './graph.ts'

/**
 * Linear layers in every weight format. All of them are row-invariant on the CPU provider: the bits of a row's result
 * depend on that row alone. The constructions and the measurements behind them stand in docs/design.md, "Numerics".
 */

/** A linear layer's weights [inputs, outputs]: `w`, or `q` and `scale`, as `model/format.ts` says. */
export type LinearWeights = {
  format: WeightFormat
  inputs: number
  outputs: number
  parts: { w?: Weight; q?: Weight; scale?: Weight }
  /** [outputs] f32. */
  bias?: Weight
}

/**
 * Rows in the form that a format's matrix multiplication takes.
 * `plain`: [rows, inputs] f32. `quantised`: `q` u8 and one `scale` a row; for `int8` two rows, the high and the low
 * halves, stand for one.
 */
export type Activations = { kind: 'plain'; rows: string } | { kind: 'quantised'; q: string; scale: string }

/** int8's 16-bit activations: |x| <= 127 * 256, so that the high half stays within a signed byte after rounding. */
const largest16 = 32512

/** One scale per row: the largest magnitude over `largest`; a row of zeros gets a tiny one instead of a division by 0. */
function rowScale(g: GraphBuilder, rows: string, largest: number): { inverse: string; scale: string } {
  const magnitude = g.op('Max', [
    g.op('ReduceMax', [g.op('Abs', [rows]), g.ints(-1)], { keepdims: { int: 1 } }),
    g.scalar(1e-30),
  ])
  return {
    inverse: g.op('Div', [g.scalar(largest), magnitude]),
    scale: g.op('Mul', [magnitude, g.scalar(1 / largest)]),
  }
}

/** Rows quantised to bytes as they are dispatched (`dispatch/rows.ts`): `data` [M, K or 2K] u8, `scale` [M, 1] f32. */
export type EncodedRows = { data: string; scale: string }

export function encodeRows8(g: GraphBuilder, rows: string): EncodedRows {
  const { inverse, scale } = rowScale(g, rows, 127)
  const rounded = g.op('Round', [g.op('Mul', [rows, inverse])])
  return { data: g.op('Cast', [g.op('Add', [rounded, g.scalar(128)])], { to: { int: 2 } }), scale }
}

export function encodeRows16(g: GraphBuilder, rows: string): EncodedRows {
  const { inverse, scale } = rowScale(g, rows, largest16)
  const rounded = g.op('Round', [g.op('Mul', [rows, inverse])])
  // Floor(x / 256 + 1/2), not Round: a tie rounded up would make the low half +128, which does not fit.
  const high = g.op('Floor', [g.op('Add', [g.op('Mul', [rounded, g.scalar(1 / 256)]), g.scalar(0.5)])])
  const low = g.op('Sub', [rounded, g.op('Mul', [high, g.scalar(256)])])
  const halves = g.op('Add', [g.concat([high, low], 1), g.scalar(128)])
  return { data: g.op('Cast', [halves], { to: { int: 2 } }), scale }
}

/** Encoded rows as the matrix multiplication takes them. */
export function decodeActivations(
  g: GraphBuilder,
  format: 'int8' | 'int8-fast',
  encoded: EncodedRows,
  inputs: number,
): Activations {
  if (format === 'int8-fast') return { kind: 'quantised', q: encoded.data, scale: encoded.scale }
  const highScale = g.op('Mul', [encoded.scale, g.scalar(256)])
  return {
    kind: 'quantised',
    q: g.op('Reshape', [encoded.data, g.ints(-1, inputs)]),
    scale: g.op('Reshape', [g.concat([highScale, encoded.scale], 1), g.ints(-1, 1)]),
  }
}

/** f32 rows as a format's matrix multiplication takes them. */
export function activations(g: GraphBuilder, format: WeightFormat, rows: string, inputs: number): Activations {
  switch (format) {
    case 'f32':
    case 'int4':
      return { kind: 'plain', rows }
    case 'int8':
      return decodeActivations(g, format, encodeRows16(g, rows), inputs)
    case 'int8-fast':
      return decodeActivations(g, format, encodeRows8(g, rows), inputs)
  }
}

/** Rows of the activations of one row. */
export function activationRows(format: WeightFormat): 1 | 2 {
  return format === 'int8' ? 2 : 1
}

/** Multiplies; for `int8` the result still has two rows for each row, which `joinHalves` adds. */
export function multiply(g: GraphBuilder, name: string, input: Activations, weights: LinearWeights): string {
  const { format, inputs, outputs, parts } = weights
  if (format === 'f32' && input.kind === 'plain' && parts.w) {
    return g.op('MatMul', [input.rows, g.weight(`${name}.w`, parts.w)])
  }
  if (format === 'int4' && input.kind === 'plain' && parts.q && parts.scale) {
    return g.runtimeOp(
      'MatMulNBits',
      [input.rows, g.weight(`${name}.q`, parts.q), g.weight(`${name}.scale`, parts.scale)],
      {
        K: { int: inputs },
        N: { int: outputs },
        bits: { int: 4 },
        block_size: { int: int4Block(inputs) },
        accuracy_level: { int: 4 },
      },
    )
  }
  if (input.kind === 'quantised' && parts.q && parts.scale) {
    return g.runtimeOp('MatMulIntegerToFloat', [
      input.q,
      g.weight(`${name}.q`, parts.q),
      input.scale,
      g.weight(`${name}.scale`, parts.scale),
      g.byte(128),
    ])
  }
  throw new Error(`linear layer ${name}: weights do not fit format ${format}`)
}

/** [2M, N] of alternating high and low halves → [M, N]; other formats pass. */
export function joinHalves(g: GraphBuilder, format: WeightFormat, product: string, outputs: number): string {
  if (format !== 'int8') return product
  const pairs = g.op('Reshape', [product, g.ints(-1, 2 * outputs)])
  const [high = '', low = ''] = g.split(pairs, 1, 2)
  return g.op('Add', [high, low])
}

/** The whole layer: f32 rows [M, inputs] → [M, outputs]. */
export function linear(g: GraphBuilder, name: string, rows: string, weights: LinearWeights): string {
  const input = activations(g, weights.format, rows, weights.inputs)
  const product = joinHalves(g, weights.format, multiply(g, name, input, weights), weights.outputs)
  return weights.bias ? g.op('Add', [product, g.weight(`${name}.bias`, weights.bias)]) : product
}

/**
 * Rows that a graph with this format must be fed in multiples of: MatMulNBits with blocks of 128 computes the last row
 * of an odd count by another path, so an odd count gets one more row, whose result is dropped.
 */
export function rowMultiple(format: WeightFormat, inputs: number): 1 | 2 {
  return format === 'int4' && int4Block(inputs) === 128 ? 2 : 1
}
