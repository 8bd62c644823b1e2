import {
  type ChannelCredentials,
  type ChannelOptions,
  Client,
  credentials as grpcCredentials,
  Metadata,
  type ServiceError,
} from '@grpc/grpc-js'
import { type ErrorCode, errorCodes, MoeshError } from '../config/errors.ts'
import { type Clock, systemClock } from '../dispatch/clock.ts'
import { raw } from '../dispatch/raw-messages.ts'
import {
  chunkBytes,
  decodeContent,
  encodeFetchRequest,
  encodeManifestRequest,
  fetchPath,
  manifestBytesMax,
  manifestPath,
} from '../dispatch/shard-messages.ts'

/** Somebody who has weights. What it gives is believed only after its digest was compared. */
export interface ShardPeer {
  readonly name: string
  /** Errors: MODEL_UNKNOWN, NODE_LOST. */
  manifest(modelDigest: string | null): Promise<Uint8Array>
  /** The shard's bytes from `offset` on. Errors: EXPERT_NOT_HELD, QUEUE_FULL, NODE_LATE, NODE_LOST. */
  fetch(sha256: string, offset: number): AsyncIterable<Uint8Array>
  close(): void
}

export type ShardPeerOptions = {
  name: string
  /** HOST:PORT */
  address: string
  credentials?: ChannelCredentials
  channelOptions?: ChannelOptions
  clock?: Clock
}

/** Nothing came for so long: another source is asked. */
const stallMs = 5000

const peerChannelOptions: ChannelOptions = {
  'grpc.keepalive_time_ms': 1000,
  'grpc.keepalive_timeout_ms': 1000,
  'grpc.max_receive_message_length': manifestBytesMax,
  'grpc.enable_retries': 0,
  'grpc.use_local_subchannel_pool': 1,
  // Several chunks: transfers are large and nobody waits for them within a round trip.
  'grpc-node.flow_control_window': 8 * chunkBytes,
}

export function connectShardPeer(options: ShardPeerOptions): ShardPeer {
  const { name, address } = options
  const clock = options.clock ?? systemClock
  const client = new Client(address, options.credentials ?? grpcCredentials.createInsecure(), {
    ...peerChannelOptions,
    ...options.channelOptions,
  })
  return {
    name,
    manifest(modelDigest) {
      return new Promise((resolve, reject) => {
        const done = (error: ServiceError | null, reply?: Buffer) => {
          if (error) reject(fromStatus(name, error))
          else resolve(decodeContent(reply ?? Buffer.alloc(0)))
        }
        const request = encodeManifestRequest({ modelDigest })
        const deadline = Date.now() + stallMs
        client.makeUnaryRequest(manifestPath, raw, raw, request, new Metadata(), { deadline }, done)
      })
    },
    async *fetch(sha256, offset) {
      const stream = client.makeServerStreamRequest(fetchPath, raw, raw, encodeFetchRequest({ sha256, offset }))
      // Whoever stops reading early cancels, and a cancelled stream tells of it once more.
      stream.on('error', () => {})
      let isStalled = false
      const stall = () => {
        isStalled = true
        stream.cancel()
      }
      let timer = clock.after(stallMs, stall)
      try {
        for await (const message of stream) {
          timer.cancel()
          yield decodeContent(message as Buffer)
          timer = clock.after(stallMs, stall)
        }
      } catch (thrown) {
        if (isStalled) throw new MoeshError('NODE_LATE', `${name} sent nothing for ${stallMs} ms`)
        throw isServiceError(thrown) ? fromStatus(name, thrown) : thrown
      } finally {
        timer.cancel()
        stream.cancel()
      }
    },
    close: () => client.close(),
  }
}

function isServiceError(thrown: unknown): thrown is ServiceError {
  return thrown instanceof Error && 'code' in thrown && 'details' in thrown
}

function fromStatus(name: string, error: ServiceError): MoeshError {
  const [named] = error.metadata?.get('moesh-code') ?? []
  const code = typeof named === 'string' && Object.hasOwn(errorCodes, named) ? (named as ErrorCode) : 'NODE_LOST'
  return new MoeshError(code, `${name}: ${error.details}`, '', { cause: error })
}
