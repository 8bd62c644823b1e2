import type { Server, ServerWritableStream, ServiceDefinition } from '@grpc/grpc-js'
import { MoeshError } from '../../config/errors.ts'
import { roomOrEnd } from '../../dispatch/backpressure.ts'
import { systemClock } from '../../dispatch/clock.ts'
import { rawCodec } from '../../dispatch/raw-messages.ts'
import { chunkBytes, encodeContent } from '../../dispatch/shard-messages.ts'
import { toServiceError } from '../api/failure.ts'
import type { KvExchange } from '../kv-exchange.ts'
import { decodeReadRequest, readPath } from './kv-messages.ts'

type ReadCall = ServerWritableStream<Buffer, Buffer>

export type KvServiceOptions = {
  kv: Pick<KvExchange, 'read' | 'refresh'>
  /** All that bits depend on but tokens, at present. */
  era: () => string
  onSent: () => void
}

/** Readers at once: each holds up steps a little. One that is turned away computes by itself. */
const readersMax = 4

const definition: ServiceDefinition = {
  read: { path: readPath, requestStream: false, responseStream: true, ...rawCodec },
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
        (thrown: unknown) => call.emit('error', toServiceError(thrown)),
      )
    },
  })
}

/** Blocks that are read while one is sent: between two steps there may be time for several. */
const readAhead = 4

async function send(call: ReadCall, { kv, era, onSent }: KvServiceOptions): Promise<void> {
  const request = decodeReadRequest(call.request)
  const reading: Promise<Uint8Array | null>[] = []
  let asked = 0
  const ask = () => {
    const name = request.names[asked++]
    if (name === undefined || request.era !== era()) return
    const block = kv.read(name)
    // One that is not waited for any more may fail, too.
    block.catch(() => {})
    reading.push(block)
  }
  for (let i = 0; i < readAhead; i++) ask()
  try {
    while (!call.cancelled) {
      const block = (await reading.shift()) ?? null
      // The era may have ended while it was read.
      if (request.era !== era()) throw new MoeshError('KV_ERA', 'what is cached here was computed otherwise')
      if (block === null) return
      ask()
      for (let at = 0; at < block.length && !call.cancelled; at += chunkBytes) {
        if (!call.write(encodeContent(block.subarray(at, at + chunkBytes)))) await roomOrEnd(call, systemClock)
      }
      if (!call.cancelled) onSent()
    }
  } finally {
    kv.refresh(request.names)
  }
}
