/**
 * ONNX models as bytes: the few messages of `onnx.proto3` that our graphs need, written by hand. A model is a few
 * kilobytes; weights lie in files beside it.
 */

const textEncoder = new TextEncoder()

type Piece = Uint8Array | Piece[]

function varint(value: number | bigint): Uint8Array {
  let rest = BigInt.asUintN(64, BigInt(value))
  const bytes: number[] = []
  while (rest > 127n) {
    bytes.push(Number(rest & 127n) | 128)
    rest >>= 7n
  }
  bytes.push(Number(rest))
  return Uint8Array.from(bytes)
}

function size(piece: Piece): number {
  return piece instanceof Uint8Array ? piece.byteLength : piece.reduce((sum, part) => sum + size(part), 0)
}

function varintField(field: number, value: number | bigint): Piece {
  return [varint(field << 3), varint(value)]
}

function bytesField(field: number, content: Piece | string): Piece {
  const piece = typeof content === 'string' ? textEncoder.encode(content) : content
  return [varint((field << 3) | 2), varint(size(piece)), piece]
}

function floatField(field: number, value: number): Piece {
  const bytes = new Uint8Array(4)
  new DataView(bytes.buffer).setFloat32(0, value, true)
  return [varint((field << 3) | 5), bytes]
}

function concat(piece: Piece): Uint8Array {
  const out = new Uint8Array(size(piece))
  let offset = 0
  const write = (part: Piece): void => {
    if (part instanceof Uint8Array) {
      out.set(part, offset)
      offset += part.byteLength
    } else part.forEach(write)
  }
  write(piece)
  return out
}

export type TensorType = 'f32' | 'f16' | 'u8' | 'i8' | 'i32' | 'i64' | 'bool'

/** TensorProto.DataType. */
export const tensorTypeCode: Record<TensorType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, i64: 7, bool: 9, f16: 10 }

/** Where the data of a constant lies: in the model itself, or in a file of the model's directory. */
export type TensorData =
  | { kind: 'inline'; bytes: Uint8Array }
  | { kind: 'file'; name: string; offset: number; bytes: number }

export type OnnxTensor = { name: string; type: TensorType; shape: readonly number[]; data: TensorData }

/** int, float, text or list of ints. */
export type Attribute = { int: number } | { float: number } | { text: string } | { ints: readonly number[] }

export type OnnxNode = {
  op: string
  domain: string
  inputs: readonly string[]
  outputs: readonly string[]
  attributes: Readonly<Record<string, Attribute>>
}

/** A graph input or output; a text in `shape` names a dimension that varies. */
export type OnnxValue = { name: string; type: TensorType; shape: readonly (number | string)[] }

export type OnnxGraph = {
  nodes: readonly OnnxNode[]
  tensors: readonly OnnxTensor[]
  inputs: readonly OnnxValue[]
  outputs: readonly OnnxValue[]
}

/** AttributeProto: name 1, f 2, i 3, s 4, ints 8, type 20. */
function attributeMessage(name: string, value: Attribute): Piece {
  const head = bytesField(1, name)
  if ('int' in value) return [head, varintField(3, value.int), varintField(20, 2)]
  if ('float' in value) return [head, floatField(2, value.float), varintField(20, 1)]
  if ('text' in value) return [head, bytesField(4, value.text), varintField(20, 3)]
  return [head, value.ints.map((item) => varintField(8, item)), varintField(20, 7)]
}

/** NodeProto: input 1, output 2, name 3, op_type 4, attribute 5, domain 7. */
function nodeMessage(node: OnnxNode, index: number): Piece {
  return [
    node.inputs.map((name) => bytesField(1, name)),
    node.outputs.map((name) => bytesField(2, name)),
    bytesField(3, `${node.op}_${index}`),
    bytesField(4, node.op),
    Object.entries(node.attributes).map(([name, value]) => bytesField(5, attributeMessage(name, value))),
    node.domain === '' ? [] : bytesField(7, node.domain),
  ]
}

/** TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13, data_location 14. */
function tensorMessage(tensor: OnnxTensor): Piece {
  const head = [
    tensor.shape.map((extent) => varintField(1, extent)),
    varintField(2, tensorTypeCode[tensor.type]),
    bytesField(8, tensor.name),
  ]
  const { data } = tensor
  if (data.kind === 'inline') return [...head, bytesField(9, data.bytes)]
  const entry = (key: string, value: string) => bytesField(13, [bytesField(1, key), bytesField(2, value)])
  return [
    ...head,
    entry('location', data.name),
    entry('offset', String(data.offset)),
    entry('length', String(data.bytes)),
    varintField(14, 1),
  ]
}

/** ValueInfoProto with a tensor type: elem_type 1, shape 2 of dim 1 (value 1, name 2). */
function valueMessage(value: OnnxValue): Piece {
  const dims = value.shape.map((extent) =>
    bytesField(1, typeof extent === 'string' ? bytesField(2, extent) : varintField(1, extent)),
  )
  return [
    bytesField(1, value.name),
    bytesField(2, bytesField(1, [varintField(1, tensorTypeCode[value.type]), bytesField(2, dims)])),
  ]
}

/** ModelProto: ir_version 1, graph 7, opset_import 8 (domain 1, version 2). */
export function encodeModel(graph: OnnxGraph): Uint8Array {
  const body = [
    graph.nodes.map((node, index) => bytesField(1, nodeMessage(node, index))),
    bytesField(2, 'moesh'),
    graph.tensors.map((tensor) => bytesField(5, tensorMessage(tensor))),
    graph.inputs.map((value) => bytesField(11, valueMessage(value))),
    graph.outputs.map((value) => bytesField(12, valueMessage(value))),
  ]
  return concat([
    varintField(1, 10),
    bytesField(7, body),
    bytesField(8, [bytesField(1, ''), varintField(2, 21)]),
    bytesField(8, [bytesField(1, microsoft), varintField(2, 1)]),
  ])
}

/** The domain of ONNX Runtime's own operators. */
export const microsoft = 'com.microsoft'
