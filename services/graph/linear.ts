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

/**
 * Bytes around 128 for rows of f32: `scale` [M] for each row. One pass over the rows, where the same from plain
 * operators takes four.
 */
function quantise(g: GraphBuilder, rows: string, scale: string): { bytes: string; zero: string } {
  const zero = g.op('Expand', [g.byte(128), g.op('Shape', [scale])])
  return { bytes: g.op('QuantizeLinear', [rows, scale, zero], { axis: { int: 0 } }), zero }
}

/** [M, 1]: the largest magnitude of each row over `largest`; a row of zeros gets a tiny one instead of a division by 0. */
function rowScale(g: GraphBuilder, rows: string, largest: number): string {
  const magnitude = g.op('ReduceMax', [g.op('Abs', [rows]), g.ints(-1)], { keepdims: { int: 1 } })
  return g.op('Mul', [g.op('Max', [magnitude, g.scalar(1e-30)]), g.scalar(1 / largest)])
}

/** Rows quantised to bytes as they are dispatched (`dispatch/rows.ts`): `data` [M, K or 2K] u8, `scale` [M, 1] f32. */
export type EncodedRows = { data: string; scale: string }

export function encodeRows8(g: GraphBuilder, rows: string): EncodedRows {
  const scale = rowScale(g, rows, 127)
  return { data: quantise(g, rows, g.op('Reshape', [scale, g.ints(-1)])).bytes, scale }
}

export function encodeRows16(g: GraphBuilder, rows: string): EncodedRows {
  const scale = rowScale(g, rows, largest16)
  const fine = g.op('Reshape', [scale, g.ints(-1)])
  const coarse = g.op('Mul', [fine, g.scalar(256)])
  const high = quantise(g, rows, coarse)
  // Where the high half was rounded at a tie, the rest may be 128, which saturates to 127: one step of the fine scale.
  const rest = g.op('Sub', [rows, g.op('DequantizeLinear', [high.bytes, coarse, high.zero], { axis: { int: 0 } })])
  return { data: g.concat([high.bytes, quantise(g, rest, fine).bytes], 1), scale }
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
  return g.op('ReduceSum', [g.op('Reshape', [product, g.ints(-1, 2, outputs)]), g.ints(1)], { keepdims: { int: 0 } })
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
