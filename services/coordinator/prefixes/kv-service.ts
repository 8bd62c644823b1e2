import type { Server, ServerWritableStream, ServiceDefinition } from '@grpc/grpc-js'
import { asMoeshError, MoeshError } from '../../config/errors.ts'
import { roomOrEnd } from '../../dispatch/backpressure.ts'
import { systemClock } from '../../dispatch/clock.ts'
import { chunkBytes, encodeContent } from '../../dispatch/shard-messages.ts'
import { statusOf } from '../../dispatch/shard-service.ts'
import type { KvExchange } from '../kv-exchange.ts'
import { decodeReadRequest, readPath } from './kv-messages.ts'

type ReadCall = ServerWritableStream<Buffer, Buffer>

export type KvServiceOptions = {
  kv: Pick<KvExchange, 'read'>
  /** All that bits depend on but tokens, at present. */
  era: () => string
  onSent: () => void
}

/** Readers at once: each holds up steps a little. One that is turned away computes by itself. */
const readersMax = 4

const same = (message: Buffer): Buffer => message
const codec = { requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same }
const definition: ServiceDefinition = {
  read: { path: readPath, requestStream: false, responseStream: true, ...codec },
}

/** Gives blocks of the KV cache to other coordinators. */
export function addKvService(server: Server, options: KvServiceOptions): void {
  let readers = 0
  server.addService(definition, {
    read(call: ReadCall) {
      const serve = async () => {
        if (readers >= readersMax) throw new MoeshError('QUEUE_FULL', `${readersMax} coordinators read here already`)
        readers += 1
        try {
          await send(call, options)
        } finally {
          readers -= 1
        }
      }
      serve().then(
        () => call.end(),
        (thrown: unknown) => call.emit('error', statusOf(asMoeshError(thrown))),
      )
    },
  })
}

async function send(call: ReadCall, { kv, era, onSent }: KvServiceOptions): Promise<void> {
  const request = decodeReadRequest(call.request)
  for (const name of request.names) {
    const block = request.era === era() && !call.cancelled ? await kv.read(name) : null
    // The era may have ended while it was read.
    if (request.era !== era()) throw new MoeshError('KV_ERA', 'what is cached here was computed otherwise')
    if (block === null) return
    for (let at = 0; at < block.length && !call.cancelled; at += chunkBytes) {
      if (!call.write(encodeContent(block.subarray(at, at + chunkBytes)))) await roomOrEnd(call, systemClock)
    }
    onSent()
  }
}
