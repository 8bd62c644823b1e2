import {
  type ChannelCredentials,
  type ChannelOptions,
  Client,
  type ClientDuplexStream,
  credentials as grpcCredentials,
  type ServiceError,
} from '@grpc/grpc-js'
import { type ErrorCode, errorCodes, MoeshError } from '../config/errors.ts'
import { protocolVersion } from '../config/version.ts'
import type { WeightFormat } from '../model/format.ts'
import type { ModelSpec } from '../model/spec.ts'
import type { Cancellation } from './cancellation.ts'
import { type Clock, systemClock, type Timer } from './clock.ts'
import { decodeReply, encodeRequest, frameBytesMax, pairsPerFrame, type ReplyFrame, RowSelection } from './frame.ts'
import { checkHello, encodeHello, type Hello } from './hello.ts'
import { raw } from './raw-messages.ts'
import { type RowEncoding, rowBytes, rowEncoding } from './rows.ts'
import { splitCall } from './split-call.ts'
import type { ExpertCall, ExpertReply, ExpertTransport } from './transport.ts'

export const dispatchPath = '/moesh.internal.v1.ExpertService/Dispatch'

export type ExpertConnectionOptions = {
  /** HOST:PORT */
  address: string
  nodeId: string
  coordinatorId: string
  spec: ModelSpec
  format: WeightFormat
  modelDigest: string
  /** Class of nodes that compute equal bits; both sides must name the same. */
  numerics: string
  credentials?: ChannelCredentials
  channelOptions?: ChannelOptions
  clock?: Clock
  /** 0 ≤ x < 1, for the jitter of reconnects. */
  random?: () => number
  /** Bytes of requests and of the replies they will get, before further calls wait. */
  bytesInFlightMax?: number
  onState?: (state: ConnectionState) => void
}

export type ConnectionState =
  | { kind: 'connecting' }
  | { kind: 'ready' }
  /** Connecting again soon; calls fail meanwhile. `reason`: the error that ended the last try. */
  | { kind: 'lost'; reason: MoeshError }
  | { kind: 'closed' }

export interface GrpcExpertTransport extends ExpertTransport {
  state(): ConnectionState
  /** Resolves with the first connection. Errors: NODE_INCOMPATIBLE, NODE_LOST if the first try failed. */
  ready(): Promise<void>
}

const defaultBytesInFlightMax = 64 * 1024 * 1024
/** Calls that wait for room; when so many wait the node is beyond help, and replicas are asked. */
const callsWaitingMax = 256
const handshakeMs = 1500
const backoffFirstMs = 100
const backoffLastMs = 2000
/** A node of another version stays one for a while. */
const backoffIncompatibleMs = 5000

/** Keepalive must work on both sides; windows of 64 KiB (the default) would cost a round trip each. */
const dispatchChannelOptions: ChannelOptions = {
  'grpc.keepalive_time_ms': 1000,
  'grpc.keepalive_timeout_ms': 500,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 500,
  'grpc.max_receive_message_length': frameBytesMax,
  'grpc.max_send_message_length': frameBytesMax,
  'grpc.enable_retries': 0,
  'grpc.use_local_subchannel_pool': 1,
  'grpc-node.flow_control_window': 16 * 1024 * 1024,
}

/**
 * The way to an expert node over gRPC: one long-lived stream. It connects at once and again whenever the connection
 * ends; while it is away, calls fail with NODE_LOST, so that replicas are asked instead of waiting.
 */
export function connectExpertNode(options: ExpertConnectionOptions): GrpcExpertTransport {
  return new ExpertConnection(options)
}

/** A frame on its way, or waiting for room. */
type Flight = {
  readonly call: ExpertCall
  readonly bytes: number
  /** Null once nobody wants the answer any more. */
  wanted: { resolve: (reply: ExpertReply) => void; reject: (error: MoeshError) => void } | null
}

type Stream = ClientDuplexStream<Buffer, Buffer>

class ExpertConnection implements GrpcExpertTransport {
  readonly nodeId: string
  readonly #options: ExpertConnectionOptions
  readonly #clock: Clock
  readonly #encoding: RowEncoding
  readonly #hidden: number
  readonly #client: Client
  readonly #hello: Hello
  readonly #selection = new RowSelection()
  readonly #flights = new Map<number, Flight>()
  readonly #waiting: Flight[] = []
  readonly #first: Promise<void>
  #settleFirst: { resolve: () => void; reject: (error: MoeshError) => void } | null
  #state: ConnectionState = { kind: 'connecting' }
  #stream: Stream | null = null
  #pairsPerFrame: number
  #sequence = 0
  #bytesInFlight = 0
  #backoffMs = backoffFirstMs
  #timer: Timer | null = null

  constructor(options: ExpertConnectionOptions) {
    this.#options = options
    this.nodeId = options.nodeId
    this.#clock = options.clock ?? systemClock
    this.#encoding = rowEncoding(options.format)
    this.#hidden = options.spec.hidden
    this.#pairsPerFrame = pairsPerFrame(this.#hidden)
    this.#hello = {
      protocol: protocolVersion,
      sender: options.coordinatorId,
      modelDigest: options.modelDigest,
      weightFormat: options.format,
      hidden: this.#hidden,
      numerics: options.numerics,
      pairsMax: this.#pairsPerFrame,
    }
    this.#client = new Client(options.address, options.credentials ?? grpcCredentials.createInsecure(), {
      ...dispatchChannelOptions,
      ...options.channelOptions,
    })
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#first = promise
    this.#settleFirst = { resolve, reject }
    // Who does not ask for it hears of a failure by the calls.
    promise.catch(() => {})
    this.#connect()
  }

  state(): ConnectionState {
    return this.#state
  }

  ready(): Promise<void> {
    return this.#first
  }

  async call(call: ExpertCall, cancellation?: Cancellation): Promise<ExpertReply> {
    if (cancellation?.isCancelled) throw cancelled(this.nodeId)
    if (this.#state.kind === 'connecting') await this.#firstOrCancelled(cancellation)
    if (this.#state.kind !== 'ready') throw this.#lost()
    const parts = splitCall(call, this.#pairsPerFrame)
    if (parts.length === 1) return this.#callPart(call, cancellation)
    const replies = await settleAll(parts.map((part) => this.#callPart(part, cancellation)))
    return { computeMs: replies.reduce((sum, { computeMs }) => sum + computeMs, 0) }
  }

  async close(): Promise<void> {
    if (this.#state.kind === 'closed') return
    this.#setState({ kind: 'closed' })
    this.#timer?.cancel()
    const lost = this.#lost()
    this.#settleFirst?.reject(lost)
    this.#settleFirst = null
    this.#dropFlights(lost)
    this.#stream?.cancel()
    this.#stream = null
    this.#client.close()
  }

  #connect(): void {
    const stream: Stream = this.#client.makeBidiStreamRequest(dispatchPath, raw, raw)
    this.#stream = stream
    stream.on('error', (error: ServiceError) => this.#ended(stream, fromStatus(this.nodeId, error)))
    stream.on('end', () => this.#ended(stream, new MoeshError('NODE_LOST', `${this.nodeId} ended the stream`)))
    stream.on('data', (message: Buffer) => this.#receive(stream, message))
    // The stop of a process is not seen by its kernel, which still accepts connections for it.
    this.#timer = this.#clock.after(handshakeMs, () => {
      this.#ended(stream, new MoeshError('NODE_LOST', `${this.nodeId} did not answer within ${handshakeMs} ms`))
    })
    stream.write(encodeHello(this.#hello))
  }

  #receive(stream: Stream, message: Buffer): void {
    if (stream !== this.#stream) return
    try {
      const decoded = decodeReply(message)
      if ('hello' in decoded) this.#greeted(decoded.hello)
      else this.#settle(decoded.frame)
    } catch (thrown) {
      const error = thrown instanceof MoeshError ? thrown : new MoeshError('INTERNAL', String(thrown))
      this.#ended(stream, error)
    }
  }

  #greeted(hello: Hello): void {
    checkHello(this.#hello, hello)
    if (hello.sender !== this.nodeId) {
      // Another node listens at the address now; membership will say where ours is.
      throw new MoeshError('NODE_LOST', `${this.#options.address} is ${hello.sender}, not ${this.nodeId}`)
    }
    this.#timer?.cancel()
    this.#timer = null
    this.#backoffMs = backoffFirstMs
    this.#pairsPerFrame = Math.max(1, Math.min(hello.pairsMax, pairsPerFrame(this.#hidden)))
    this.#setState({ kind: 'ready' })
    this.#settleFirst?.resolve()
    this.#settleFirst = null
  }

  /** The stream is no more: all its calls fail, and a new one is tried after a while. */
  #ended(stream: Stream, reason: MoeshError): void {
    if (stream !== this.#stream || this.#state.kind === 'closed') return
    this.#stream = null
    this.#timer?.cancel()
    stream.cancel()
    this.#setState({ kind: 'lost', reason })
    this.#settleFirst?.reject(reason)
    this.#settleFirst = null
    this.#dropFlights(new MoeshError('NODE_LOST', reason.message, '', { cause: reason }))
    const random = this.#options.random ?? Math.random
    const delayMs = reason.code === 'NODE_INCOMPATIBLE' ? backoffIncompatibleMs : this.#backoffMs
    this.#backoffMs = Math.min(backoffLastMs, this.#backoffMs * 2)
    this.#timer = this.#clock.after(delayMs * (0.5 + random() / 2), () => this.#connect())
  }

  #callPart(call: ExpertCall, cancellation: Cancellation | undefined): Promise<ExpertReply> {
    const pairs = call.rowIndices.length
    const bytes = pairs * (rowBytes(this.#encoding, this.#hidden) + this.#hidden * 4)
    return new Promise((resolve, reject) => {
      const flight: Flight = { call, bytes, wanted: null }
      const giveUp = () => {
        this.#forgetWaiting(flight)
        flight.wanted?.reject(cancelled(this.nodeId))
      }
      const done = () => {
        cancellation?.forget(giveUp)
        flight.wanted = null
      }
      flight.wanted = {
        resolve: (reply) => {
          done()
          resolve(reply)
        },
        reject: (error) => {
          done()
          reject(error)
        },
      }
      cancellation?.listen(giveUp)
      if (this.#hasRoom(bytes) && this.#waiting.length === 0) this.#send(flight)
      else if (this.#waiting.length < callsWaitingMax) this.#waiting.push(flight)
      else flight.wanted.reject(new MoeshError('NODE_LATE', `${callsWaitingMax} calls to ${this.nodeId} are waiting`))
    })
  }

  #hasRoom(bytes: number): boolean {
    const max = this.#options.bytesInFlightMax ?? defaultBytesInFlightMax
    return this.#flights.size === 0 || this.#bytesInFlight + bytes <= max
  }

  #send(flight: Flight): void {
    // 0 is what a reply without a number would have.
    this.#sequence = (this.#sequence % 0xffffffff) + 1
    this.#flights.set(this.#sequence, flight)
    this.#bytesInFlight += flight.bytes
    this.#stream?.write(encodeRequest(this.#sequence, flight.call, this.#encoding, this.#hidden, this.#selection))
  }

  #settle(frame: ReplyFrame): void {
    const flight = this.#flights.get(frame.sequence)
    if (!flight)
      throw new MoeshError('INTERNAL', `${this.nodeId} answered request ${frame.sequence}, which is not open`)
    this.#flights.delete(frame.sequence)
    this.#bytesInFlight -= flight.bytes
    // What nobody wants any more is not copied: its place may hold other rows by now.
    if (flight.wanted) {
      if (frame.kind === 'error') flight.wanted.reject(new MoeshError(knownCode(frame.code), frame.message))
      else this.#deliver(flight, frame.payload, frame.computeMs)
    }
    for (let next = this.#waiting[0]; next && this.#hasRoom(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#send(next)
    }
  }

  #deliver({ call, wanted }: Flight, payload: Uint8Array, computeMs: number): void {
    const bytes = call.rowIndices.length * this.#hidden * 4
    if (payload.length !== bytes) {
      wanted?.reject(new MoeshError('INTERNAL', `${this.nodeId} sent ${payload.length} bytes of outputs, not ${bytes}`))
      return
    }
    const { data } = call.outputs
    new Uint8Array(data.buffer, data.byteOffset + call.outputStart * this.#hidden * 4, bytes).set(payload)
    wanted?.resolve({ computeMs })
  }

  #forgetWaiting(flight: Flight): void {
    const index = this.#waiting.indexOf(flight)
    if (index >= 0) this.#waiting.splice(index, 1)
  }

  #dropFlights(error: MoeshError): void {
    const flights = [...this.#flights.values(), ...this.#waiting]
    this.#flights.clear()
    this.#waiting.length = 0
    this.#bytesInFlight = 0
    for (const { wanted } of flights) wanted?.reject(error)
  }

  #firstOrCancelled(cancellation: Cancellation | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const giveUp = () => reject(cancelled(this.nodeId))
      cancellation?.listen(giveUp)
      this.#first.then(resolve, () => reject(this.#lost())).finally(() => cancellation?.forget(giveUp))
    })
  }

  #lost(): MoeshError {
    if (this.#state.kind === 'lost') {
      const { reason } = this.#state
      return new MoeshError('NODE_LOST', `no connection to ${this.nodeId}: ${reason.message}`, '', { cause: reason })
    }
    return new MoeshError('NODE_LOST', `the way to ${this.nodeId} is closed`)
  }

  #setState(state: ConnectionState): void {
    const isNew = state.kind !== this.#state.kind
    this.#state = state
    // A node that stays away is told of once.
    if (isNew) this.#options.onState?.(state)
  }
}

function cancelled(nodeId: string): MoeshError {
  return new MoeshError('CANCELLED', `the call to ${nodeId} was given up`)
}

/** All must have settled before one's failure is told: the others still write outputs. */
async function settleAll<T>(promises: Promise<T>[]): Promise<T[]> {
  const results = await Promise.allSettled(promises)
  return results.map((result) => {
    if (result.status === 'rejected') throw result.reason
    return result.value
  })
}

function fromStatus(nodeId: string, error: ServiceError): MoeshError {
  const [named] = error.metadata?.get('moesh-code') ?? []
  const code = typeof named === 'string' ? knownCode(named) : 'NODE_LOST'
  return new MoeshError(code, `${nodeId}: ${error.details}`, '', { cause: error })
}

function knownCode(code: string): ErrorCode {
  return Object.hasOwn(errorCodes, code) ? (code as ErrorCode) : 'INTERNAL'
}
