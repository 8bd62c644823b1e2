import {
  Metadata,
  type Server,
  type ServerDuplexStream,
  type ServerOptions,
  type ServiceDefinition,
} from '@grpc/grpc-js'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import { grpcStatus } from '../config/grpc-status.ts'
import { protocolVersion } from '../config/version.ts'
import {
  checkRequest,
  decodeRequest,
  encodeError,
  encodeReply,
  type FrameShape,
  frameBytesMax,
  pairsPerFrame,
  type RequestFrame,
} from '../dispatch/frame.ts'
import { dispatchPath } from '../dispatch/grpc-transport.ts'
import { checkHello, encodeHello, type Hello } from '../dispatch/hello.ts'
import { rawCodec } from '../dispatch/raw-messages.ts'
import { hasScale, rowEncoding } from '../dispatch/rows.ts'
import type { WeightFormat } from '../model/format.ts'
import { type ModelSpec, moeLayers } from '../model/spec.ts'
import { FrameBufferPool } from './frame-buffers.ts'
import type { ExpertHost } from './host.ts'
import { widenDispatchWindows } from './receive-window.ts'

type Call = ServerDuplexStream<Buffer, Buffer>

/** For the gRPC server that carries the service. A peer that is gone without a word must be noticed on this side too. */
export const expertServerOptions: ServerOptions = {
  'grpc.keepalive_time_ms': 1000,
  'grpc.keepalive_timeout_ms': 500,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.max_receive_message_length': frameBytesMax,
  'grpc.max_send_message_length': frameBytesMax,
}

export type ExpertServiceOptions = {
  host: Pick<ExpertHost, 'call' | 'ranks'>
  nodeId: string
  spec: ModelSpec
  format: WeightFormat
  modelDigest: string
  /** Class of nodes that compute equal bits; both sides must name the same. */
  numerics: string
  nowMs: () => number
  /** Throws for a caller that may not dispatch. */
  authorize?: (call: Call) => void
  /** A stream was refused or ended by an error of its peer. */
  onProblem?: (error: MoeshError) => void
}

export interface ExpertService {
  /** `waitedMs`: all that calls have waited before their rows were computed. */
  stats(): { streams: number; calls: number; rows: number; waitedMs: number; computing: number; waiting: number }
  /** Ends all streams, after the calls that were accepted. */
  close(): Promise<void>
}

/** A stream whose peer does not read its replies is ended when so many bytes are waiting for it. */
const unreadBytesMax = 256 * 1024 * 1024

/** Serves an `ExpertHost` to coordinators: any number of streams, each with any number of calls in flight. */
export function addExpertService(server: Server, options: ExpertServiceOptions): ExpertService {
  const service = new DispatchServer(options)
  server.addService(definition, { dispatch: (call: Call) => service.accept(call) })
  return service
}

const definition: ServiceDefinition = {
  dispatch: {
    path: dispatchPath,
    requestStream: true,
    responseStream: true,
    ...rawCodec,
  },
}

type Peer = { readonly call: Call; coordinatorId: string | null; unreadBytes: number; isOver: boolean }

class DispatchServer implements ExpertService {
  readonly #options: ExpertServiceOptions
  readonly #hello: Hello
  readonly #shape: FrameShape
  readonly #pool: FrameBufferPool
  readonly #peers = new Set<Peer>()
  readonly #restoreWindows: () => void
  #calls = 0
  #rows = 0
  #waitedMs = 0
  #computing = 0
  #idle: (() => void) | null = null
  #isClosing = false

  constructor(options: ExpertServiceOptions) {
    const { spec, format, host } = options
    this.#options = options
    this.#hello = {
      protocol: protocolVersion,
      sender: options.nodeId,
      modelDigest: options.modelDigest,
      weightFormat: format,
      hidden: spec.hidden,
      numerics: options.numerics,
      pairsMax: pairsPerFrame(spec.hidden),
    }
    this.#shape = {
      hidden: spec.hidden,
      encoding: rowEncoding(format),
      layers: new Map(moeLayers(spec).map(({ layer, ffn }) => [layer, ffn.experts])),
    }
    // One more than ranks: the next call's rows are copied in while all ranks compute.
    this.#pool = new FrameBufferPool(this.#shape.encoding, spec.hidden, host.ranks + 1)
    this.#restoreWindows = widenDispatchWindows()
  }

  accept(call: Call): void {
    const peer: Peer = { call, coordinatorId: null, unreadBytes: 0, isOver: false }
    try {
      this.#options.authorize?.(call)
      if (this.#isClosing) throw new MoeshError('NODE_LOST', `${this.#options.nodeId} is shutting down`)
    } catch (thrown) {
      this.#refuse(peer, asMoeshError(thrown))
      return
    }
    this.#peers.add(peer)
    call.on('data', (message: Buffer) => this.#receive(peer, message))
    call.on('end', () => {
      this.#forget(peer)
      call.end()
    })
    call.on('cancelled', () => this.#forget(peer))
    call.on('error', () => this.#forget(peer))
  }

  stats(): ReturnType<ExpertService['stats']> {
    return {
      streams: this.#peers.size,
      calls: this.#calls,
      rows: this.#rows,
      waitedMs: this.#waitedMs,
      computing: this.#computing - this.#pool.waiting,
      waiting: this.#pool.waiting,
    }
  }

  async close(): Promise<void> {
    this.#isClosing = true
    if (this.#computing > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve
      })
    }
    for (const peer of [...this.#peers]) {
      this.#forget(peer)
      peer.call.end()
    }
    this.#restoreWindows()
  }

  #receive(peer: Peer, message: Buffer): void {
    if (peer.isOver) return
    try {
      const decoded = decodeRequest(message)
      if ('hello' in decoded) this.#greet(peer, decoded.hello)
      else if (peer.coordinatorId === null)
        throw new MoeshError('INVALID_ARGUMENT', 'the first message must be a hello')
      else void this.#serve(peer, decoded.frame)
    } catch (thrown) {
      this.#refuse(peer, asMoeshError(thrown))
    }
  }

  #greet(peer: Peer, hello: Hello): void {
    checkHello(this.#hello, hello)
    peer.coordinatorId = hello.sender
    this.#write(peer, encodeHello(this.#hello))
  }

  async #serve(peer: Peer, frame: RequestFrame): Promise<void> {
    this.#computing += 1
    const arrivedMs = this.#options.nowMs()
    try {
      if (this.#isClosing) throw new MoeshError('NODE_LOST', `${this.#options.nodeId} is shutting down`)
      checkRequest(frame, this.#shape)
      await this.#compute(peer, frame, arrivedMs)
    } catch (thrown) {
      const error = asMoeshError(thrown)
      if (error.code === 'INTERNAL') this.#options.onProblem?.(error)
      this.#write(peer, encodeError(frame.sequence, error.code, error.message))
    } finally {
      this.#computing -= 1
      if (this.#computing === 0) this.#idle?.()
    }
  }

  #compute(peer: Peer, frame: RequestFrame, arrivedMs: number): Promise<void> {
    const pairs = frame.rowIndices.length
    return this.#pool.use(frame.rows, pairs, async ({ rows, outputs }) => {
      if (peer.isOver) throw new MoeshError('CANCELLED', 'the coordinator has gone')
      const waitMs = this.#options.nowMs() - arrivedMs
      rows.data.set(frame.payload)
      if (hasScale(this.#shape.encoding)) rows.scales.set(frame.scales)
      const { layer, experts, counts, rowIndices } = frame
      const reply = await this.#options.host.call({ layer, experts, counts, rowIndices, rows, outputs, outputStart: 0 })
      this.#calls += 1
      this.#rows += pairs
      // For a buffer, and then for its turn on the ranks.
      this.#waitedMs += Math.max(0, this.#options.nowMs() - arrivedMs - reply.computeMs)
      const values = pairs * this.#shape.hidden
      const message = encodeReply(frame.sequence, outputs, values, reply.computeMs, waitMs)
      // gRPC copies a message when it takes it, which it does at once unless another is before it.
      this.#write(peer, peer.call.writableLength === 0 ? message : Buffer.from(message))
    })
  }

  #write(peer: Peer, message: Buffer): void {
    if (peer.isOver) return
    peer.unreadBytes += message.length
    peer.call.write(message, () => {
      peer.unreadBytes -= message.length
    })
    if (peer.unreadBytes > unreadBytesMax) {
      this.#refuse(peer, new MoeshError('MEMORY_EXHAUSTED', `${peer.coordinatorId} does not read its replies`))
    }
  }

  /** Ends the stream with an error. */
  #refuse(peer: Peer, error: MoeshError): void {
    if (peer.isOver) return
    this.#forget(peer)
    this.#options.onProblem?.(error)
    const metadata = new Metadata()
    metadata.set('moesh-code', error.code)
    peer.call.emit('error', { code: grpcStatus(error.code), details: error.message, metadata })
  }

  #forget(peer: Peer): void {
    peer.isOver = true
    this.#peers.delete(peer)
  }
}
