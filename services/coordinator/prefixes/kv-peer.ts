import { type ChannelCredentials, type ChannelOptions, Client } from '@grpc/grpc-js'
import { raw } from '../../dispatch/raw-messages.ts'
import { chunkBytes, decodeContent } from '../../dispatch/shard-messages.ts'
import { encodeReadRequest, type ReadRequest, readPath } from './kv-messages.ts'

/** Another coordinator, as one that has KV blocks. */
export interface KvPeer {
  /** Whole blocks of `blockBytes`, in the order of the names, as far as they are there. Errors: those of gRPC. */
  read(request: ReadRequest, blockBytes: number, signal: AbortSignal): AsyncIterable<Uint8Array>
  close(): void
}

export type KvPeerOptions = { address: string; credentials: ChannelCredentials; channelOptions: ChannelOptions }

export function connectKvPeer({ address, credentials, channelOptions }: KvPeerOptions): KvPeer {
  const client = new Client(address, credentials, {
    'grpc.keepalive_time_ms': 1000,
    'grpc.keepalive_timeout_ms': 1000,
    'grpc.max_receive_message_length': 2 * chunkBytes,
    'grpc.enable_retries': 0,
    // Several chunks: nobody waits for a round trip within a block.
    'grpc-node.flow_control_window': 8 * chunkBytes,
    ...channelOptions,
  })
  return {
    async *read(request, blockBytes, signal) {
      const stream = client.makeServerStreamRequest(readPath, raw, raw, encodeReadRequest(request))
      // Whoever stops reading early cancels, and a cancelled stream tells of it once more.
      stream.on('error', () => {})
      const cancel = () => stream.cancel()
      signal.addEventListener('abort', cancel, { once: true })
      try {
        let block = new Uint8Array(blockBytes)
        let filled = 0
        for await (const message of stream) {
          const data = decodeContent(message as Buffer)
          if (filled + data.length > blockBytes) return
          block.set(data, filled)
          filled += data.length
          if (filled < blockBytes) continue
          yield block
          block = new Uint8Array(blockBytes)
          filled = 0
        }
      } finally {
        signal.removeEventListener('abort', cancel)
        stream.cancel()
      }
    },
    close: () => client.close(),
  }
}
