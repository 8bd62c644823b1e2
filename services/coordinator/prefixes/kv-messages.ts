import { MoeshError } from '../../config/errors.ts'
import { fieldBytes, WireReader, WireWriter } from '../../dispatch/wire.ts'

/** The request of `proto/moesh/internal/v1/kv.proto`; replies are as `dispatch/shard-messages.ts` has them. */

export const readPath = '/moesh.internal.v1.KvService/Read'

export type ReadRequest = { era: string; names: readonly string[] }

const nameBytes = 32
const eraCharsMax = 1024

export function encodeReadRequest({ era, names }: ReadRequest): Buffer {
  const eraContent = Buffer.from(era)
  const nameContent = Buffer.from(names.join(''), 'hex')
  const writer = new WireWriter(Buffer.alloc(fieldBytes(eraContent.length) + fieldBytes(nameContent.length)))
  writer.bytes(1, eraContent)
  writer.bytes(2, nameContent)
  return writer.buffer
}

/** Errors: INVALID_ARGUMENT. */
export function decodeReadRequest(message: Uint8Array): ReadRequest {
  const reader = new WireReader(message)
  let era = ''
  const names: string[] = []
  while (reader.next()) {
    if (reader.field === 1) era = reader.string(eraCharsMax)
    else if (reader.field === 2) {
      const bytes = Buffer.from(reader.bytes())
      if (bytes.length % nameBytes !== 0) {
        throw new MoeshError('INVALID_ARGUMENT', `names have ${nameBytes} bytes, not ${bytes.length} together`)
      }
      for (let at = 0; at < bytes.length; at += nameBytes) names.push(bytes.toString('hex', at, at + nameBytes))
    }
  }
  return { era, names }
}
