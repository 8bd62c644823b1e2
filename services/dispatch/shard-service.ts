import { open } from 'node:fs/promises'
import {
  Metadata,
  type Server,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceDefinition,
  type sendUnaryData,
} from '@grpc/grpc-js'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import { grpcStatus } from '../config/grpc-status.ts'
import { roomOrEnd } from './backpressure.ts'
import { type Clock, systemClock } from './clock.ts'
import { RateLimit } from './rate-limit.ts'
import { rawCodec } from './raw-messages.ts'
import {
  chunkBytes,
  decodeFetchRequest,
  decodeManifestRequest,
  encodeContent,
  fetchPath,
  manifestPath,
} from './shard-messages.ts'

/** Where a shard's bytes lie. */
export type ShardPlace = { path: string; offset: number; bytes: number }

/** What a process can give to others. */
export interface ShardLibrary {
  /** manifest.json as it is, of the model with that digest, or of any (null). */
  manifest(modelDigest: string | null): Uint8Array | undefined
  find(sha256: string): ShardPlace | undefined
}

type FetchCall = ServerWritableStream<Buffer, Buffer>
type ManifestCall = ServerUnaryCall<Buffer, Buffer>

export type ShardServiceOptions = {
  library: ShardLibrary
  /** Of all transfers together; default: no limit. */
  bytesPerSecond?: number
  clock?: Clock
  /** Throws for a caller that may not have weights. */
  authorize?: (call: FetchCall | ManifestCall) => void
}

/** Transfers at once; a node that is turned away asks another source, or again. */
const transfersMax = 16

const definition: ServiceDefinition = {
  getManifest: { path: manifestPath, requestStream: false, responseStream: false, ...rawCodec },
  fetch: { path: fetchPath, requestStream: false, responseStream: true, ...rawCodec },
}

/** Serves manifest and shards to expert nodes. */
export function addShardService(server: Server, options: ShardServiceOptions): void {
  const { library, authorize } = options
  const clock = options.clock ?? systemClock
  const limit = new RateLimit(options.bytesPerSecond ?? Infinity, clock)
  let transfers = 0
  server.addService(definition, {
    getManifest(call: ManifestCall, reply: sendUnaryData<Buffer>) {
      try {
        authorize?.(call)
        const { modelDigest } = decodeManifestRequest(call.request)
        const manifest = library.manifest(modelDigest)
        if (!manifest) throw new MoeshError('MODEL_UNKNOWN', `the model ${modelDigest ?? ''} is not served here`)
        reply(null, encodeContent(manifest))
      } catch (thrown) {
        reply(statusOf(asMoeshError(thrown)))
      }
    },
    fetch(call: FetchCall) {
      const serve = async () => {
        authorize?.(call)
        const { sha256, offset } = decodeFetchRequest(call.request)
        const place = library.find(sha256)
        if (!place) throw new MoeshError('EXPERT_NOT_HELD', `the shard ${sha256} is not here`)
        if (offset > place.bytes) {
          throw new MoeshError('INVALID_ARGUMENT', `offset ${offset} of a shard of ${place.bytes} bytes`)
        }
        if (transfers >= transfersMax) throw new MoeshError('QUEUE_FULL', `${transfersMax} transfers are under way`)
        transfers += 1
        try {
          await send(call, place, offset, limit, clock)
        } finally {
          transfers -= 1
        }
      }
      serve().then(
        () => call.end(),
        (thrown: unknown) => call.emit('error', statusOf(asMoeshError(thrown))),
      )
    },
  })
}

async function send(call: FetchCall, place: ShardPlace, offset: number, limit: RateLimit, clock: Clock): Promise<void> {
  const file = await open(place.path, 'r')
  try {
    for (let at = offset; at < place.bytes && !call.cancelled; ) {
      const chunk = Buffer.allocUnsafe(Math.min(chunkBytes, place.bytes - at))
      const { bytesRead } = await file.read(chunk, 0, chunk.length, place.offset + at)
      if (bytesRead === 0) throw new MoeshError('PACK_INVALID', `${place.path} ends at byte ${place.offset + at}`)
      await limit.pass(bytesRead)
      if (!call.write(encodeContent(chunk.subarray(0, bytesRead)))) await roomOrEnd(call, clock)
      at += bytesRead
    }
  } finally {
    await file.close()
  }
}

function statusOf(error: MoeshError) {
  const metadata = new Metadata()
  metadata.set('moesh-code', error.code)
  return { code: grpcStatus(error.code), details: error.message, metadata }
}
