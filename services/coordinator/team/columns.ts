import type { Weight } from '../../graph/graph.ts'
import type { LinearWeights } from '../../graph/linear.ts'
import { int4Block, linearParts, type WeightFormat } from '../../model/format.ts'
import type { Range } from './cut.ts'

/** The tensors of a pack, by their names there. */
export interface TensorSource {
  /** Where a tensor lies. */
  locate(name: string): { path: string; offset: number }
  /** The whole tensor's bytes: for small ones. */
  readTensor(name: string): Uint8Array
}

export type Columns = { tensor: string; outputs: number; range: Range; bias: string | null }

/** Some columns of one or more linear layers [inputs, *], side by side as one layer. */
export function readColumns(
  source: TensorSource,
  format: WeightFormat,
  inputs: number,
  columns: readonly Columns[],
): LinearWeights {
  const outputs = columns.reduce((sum, { range }) => sum + range.to - range.from, 0)
  const weights: LinearWeights = { format, inputs, outputs, parts: {} }
  for (const part of linearParts(format, inputs, outputs)) {
    // [inputs, outputs] are cut along rows of bytes; everything else has its outputs first and is cut in one piece.
    const rows = part.name === 'w' || (part.name === 'q' && format !== 'int4') ? inputs : 1
    const elementBytes = bytesPerOutput(part.name, format, inputs)
    const pieces = columns.map(({ tensor, outputs: whole, range }) => {
      const { path, offset } = source.locate(`${tensor}.${part.name}`)
      return {
        path,
        offset: offset + range.from * elementBytes,
        stride: whole * elementBytes,
        bytes: (range.to - range.from) * elementBytes,
      }
    })
    const type = part.dtype
    if (type !== 'f32' && type !== 'i8' && type !== 'u8') throw new Error(`linear part of type ${type}`)
    weights.parts[part.name] = { type, shape: part.shape, source: { kind: 'rows', rows, pieces } }
  }
  if (columns.some(({ bias }) => bias !== null)) weights.bias = readBias(source, columns, outputs)
  return weights
}

/** Bytes that one output column takes in a row of a part (in the whole part, where outputs come first). */
function bytesPerOutput(part: 'w' | 'q' | 'scale', format: WeightFormat, inputs: number): number {
  if (part === 'w') return 4
  if (format !== 'int4') return part === 'q' ? 1 : 4
  const block = int4Block(inputs)
  return Math.ceil(inputs / block) * (part === 'q' ? block / 2 : 4)
}

function readBias(source: TensorSource, columns: readonly Columns[], outputs: number): Weight {
  const bytes = new Uint8Array(outputs * 4)
  let column = 0
  for (const { bias, range } of columns) {
    if (bias !== null) bytes.set(source.readTensor(bias).subarray(range.from * 4, range.to * 4), column * 4)
    column += range.to - range.from
  }
  return { type: 'f32', shape: [outputs], source: { kind: 'bytes', bytes } }
}

/** A f32 vector or matrix as it is. */
export function readWhole(source: TensorSource, name: string, shape: readonly number[]): Weight {
  return { type: 'f32', shape, source: { kind: 'bytes', bytes: source.readTensor(name) } }
}

/** A f32 vector for the host's own arithmetic. */
export function readFloats(source: TensorSource, name: string): Float32Array {
  const bytes = source.readTensor(name)
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength))
}
