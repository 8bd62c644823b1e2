import assert from 'node:assert/strict'
import { MoeshError } from '../config/errors.ts'
import { fieldBytes, fixed32Bytes, WireReader, WireWriter } from './wire.ts'

/** Who speaks and what both must agree on: the first message of a dispatch stream, each way. */
export type Hello = {
  protocol: number
  sender: string
  modelDigest: string
  weightFormat: string
  hidden: number
  numerics: string
  pairsMax: number
}

/** The field of a hello in both messages of the stream. */
export const helloField = 15
const textBytesMax = 1024

const helloFields = {
  protocol: 1,
  sender: 2,
  modelDigest: 3,
  weightFormat: 4,
  hidden: 5,
  numerics: 6,
  pairsMax: 7,
} as const

/** A whole message that holds nothing but the hello. */
export function encodeHello(hello: Hello): Buffer {
  const strings = [hello.sender, hello.modelDigest, hello.weightFormat, hello.numerics].map((text) => Buffer.from(text))
  const bytes = 3 * fixed32Bytes + strings.reduce((sum, { length }) => sum + fieldBytes(length), 0)
  const [sender, modelDigest, weightFormat, numerics] = strings
  assert(sender && modelDigest && weightFormat && numerics)
  const inner = new WireWriter(Buffer.alloc(bytes))
  inner.fixed32(helloFields.protocol, hello.protocol)
  inner.bytes(helloFields.sender, sender)
  inner.bytes(helloFields.modelDigest, modelDigest)
  inner.bytes(helloFields.weightFormat, weightFormat)
  inner.fixed32(helloFields.hidden, hello.hidden)
  inner.bytes(helloFields.numerics, numerics)
  inner.fixed32(helloFields.pairsMax, hello.pairsMax)
  const writer = new WireWriter(Buffer.alloc(fieldBytes(bytes)))
  writer.bytes(helloField, inner.buffer)
  return writer.buffer
}

/** Errors: INVALID_ARGUMENT. */
export function decodeHello(message: Uint8Array): Hello {
  const reader = new WireReader(message)
  const hello: Hello = {
    protocol: 0,
    sender: '',
    modelDigest: '',
    weightFormat: '',
    hidden: 0,
    numerics: '',
    pairsMax: 0,
  }
  while (reader.next()) {
    switch (reader.field) {
      case helloFields.protocol:
        hello.protocol = reader.fixed32()
        break
      case helloFields.sender:
        hello.sender = reader.string(textBytesMax)
        break
      case helloFields.modelDigest:
        hello.modelDigest = reader.string(textBytesMax)
        break
      case helloFields.weightFormat:
        hello.weightFormat = reader.string(textBytesMax)
        break
      case helloFields.hidden:
        hello.hidden = reader.fixed32()
        break
      case helloFields.numerics:
        hello.numerics = reader.string(textBytesMax)
        break
      case helloFields.pairsMax:
        hello.pairsMax = reader.fixed32()
        break
    }
  }
  return hello
}

/** What both sides must have in common. Errors: NODE_INCOMPATIBLE, naming the first thing that differs. */
export function checkHello(own: Hello, peer: Hello): void {
  const differs = (what: string, ours: string | number, theirs: string | number) =>
    new MoeshError(
      'NODE_INCOMPATIBLE',
      `${peer.sender} has ${what} ${theirs === '' ? '(none)' : theirs}, ${own.sender} has ${ours === '' ? '(none)' : ours}`,
      'run the same version, model and format on all nodes of a cluster',
    )
  if (own.protocol !== peer.protocol) throw differs('the protocol version', own.protocol, peer.protocol)
  if (own.modelDigest !== peer.modelDigest) throw differs('the model digest', own.modelDigest, peer.modelDigest)
  if (own.weightFormat !== peer.weightFormat) throw differs('the weight format', own.weightFormat, peer.weightFormat)
  if (own.hidden !== peer.hidden) throw differs('the hidden size', own.hidden, peer.hidden)
  if (own.numerics !== peer.numerics) throw differs('the numerics class', own.numerics, peer.numerics)
}
