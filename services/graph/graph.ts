import type { Attribute, OnnxNode, OnnxValue, TensorType } from './onnx.ts'
import { microsoft } from './onnx.ts'

/**
 * Where a weight's bytes lie: in memory, in a file where they already have the right layout, or in pieces of files that
 * are put together row by row: row r is the pieces' `bytes` at `offset + r * stride`, one behind the other.
 */
export type WeightSource =
  | { kind: 'bytes'; bytes: Uint8Array }
  | { kind: 'file'; path: string; offset: number; bytes: number }
  | { kind: 'rows'; rows: number; pieces: readonly FilePiece[] }

export type FilePiece = { path: string; offset: number; stride: number; bytes: number }

export type Weight = { type: TensorType; shape: readonly number[]; source: WeightSource }

/** Small constants, weights, nodes, inputs and outputs: what a session is made from. */
export type Graph = {
  nodes: OnnxNode[]
  constants: Map<string, { type: TensorType; shape: readonly number[]; bytes: Uint8Array }>
  weights: Map<string, Weight>
  inputs: OnnxValue[]
  outputs: OnnxValue[]
}

/** Adds to a graph; every method returns the name of the value that it made. */
export class GraphBuilder {
  readonly graph: Graph = { nodes: [], constants: new Map(), weights: new Map(), inputs: [], outputs: [] }
  #values = 0

  /** A name that nothing else in this graph has. */
  name(stem: string): string {
    this.#values += 1
    return `${stem}.${this.#values}`
  }

  input(name: string, type: TensorType, shape: readonly (number | string)[]): string {
    this.graph.inputs.push({ name, type, shape })
    return name
  }

  /** Gives `value` the name under which it leaves the graph. */
  output(name: string, value: string, type: TensorType, shape: readonly (number | string)[]): void {
    this.graph.nodes.push({ op: 'Identity', domain: '', inputs: [value], outputs: [name], attributes: {} })
    this.graph.outputs.push({ name, type, shape })
  }

  weight(name: string, weight: Weight): string {
    this.graph.weights.set(name, weight)
    return name
  }

  scalar(value: number): string {
    return this.#constant(`f32.${value}`, 'f32', [], new Uint8Array(Float32Array.of(value).buffer))
  }

  byte(value: number): string {
    return this.#constant(`u8.${value}`, 'u8', [], Uint8Array.of(value))
  }

  ints(...values: number[]): string {
    const bytes = new Uint8Array(BigInt64Array.from(values.map(BigInt)).buffer)
    return this.#constant(`i64.${values.join(',')}`, 'i64', [values.length], bytes)
  }

  op(op: string, inputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): string {
    return this.#node(op, '', inputs, attributes)
  }

  /** An operator of ONNX Runtime's own. */
  runtimeOp(op: string, inputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): string {
    return this.#node(op, microsoft, inputs, attributes)
  }

  /** Along `axis`, into equal parts or, with `sizes`, by an int64 value. */
  split(value: string, axis: number, parts: number, sizes: string | null = null): string[] {
    const outputs = Array.from({ length: parts }, () => this.name('Split'))
    this.graph.nodes.push({
      op: 'Split',
      domain: '',
      inputs: sizes === null ? [value] : [value, sizes],
      outputs,
      attributes: sizes === null ? { axis: { int: axis }, num_outputs: { int: parts } } : { axis: { int: axis } },
    })
    return outputs
  }

  concat(values: readonly string[], axis: number): string {
    const [only] = values
    return values.length === 1 && only !== undefined ? only : this.op('Concat', values, { axis: { int: axis } })
  }

  #node(
    op: string,
    domain: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>>,
  ): string {
    const output = this.name(op)
    this.graph.nodes.push({ op, domain, inputs, outputs: [output], attributes })
    return output
  }

  #constant(name: string, type: TensorType, shape: readonly number[], bytes: Uint8Array): string {
    this.graph.constants.set(name, { type, shape, bytes })
    return name
  }
}
