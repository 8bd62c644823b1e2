import type { ServerWritableStream } from '@grpc/grpc-js'
import { MoeshError } from '../../config/errors.ts'
import { messageBytesTarget, unsentBytesMax } from '../../config/limits.ts'
import { toServiceError } from './failure.ts'
import type { DeltaMessage, GenerateResponseMessage, TokenInfoMessage } from './wire.ts'

export type ReplyCall = ServerWritableStream<unknown, GenerateResponseMessage>

type Waiting = { message: GenerateResponseMessage; bytes: number }

/**
 * The way of one stream to its client. The engine can't be held up for a slow reader, since its steps carry everybody's
 * tokens. So one message is on its way at a time, and what comes meanwhile is added to a waiting delta of the same
 * candidate: a slow client gets fewer and larger messages. What waits is bounded; a client beyond the bound loses its
 * stream (CLIENT_SLOW), and can resume it.
 */
export class ReplyStream {
  readonly #call: ReplyCall
  readonly #requestId: string
  readonly #onOverflow: (error: Error) => void
  #waiting: Waiting[] = []
  /** Per candidate, the delta that waits and may still grow. */
  readonly #growing = new Map<number, Waiting>()
  #waitingBytes = 0
  #state: 'idle' | 'scheduled' | 'writing' | 'closed' = 'idle'
  #ends = false

  /** `onOverflow`: the stream has failed because its client is slow. */
  constructor(call: ReplyCall, requestId: string, onOverflow: (error: Error) => void) {
    this.#call = call
    this.#requestId = requestId
    this.#onOverflow = onOverflow
  }

  /** A message of its own: prompt or usage. `bytes` is an estimate. */
  send(message: Omit<GenerateResponseMessage, 'request_id'>, bytes: number): void {
    this.#enqueue({ message: { request_id: this.#requestId, ...message }, bytes })
  }

  sendDelta(delta: DeltaMessage): void {
    if (this.#state === 'closed') return
    const bytes = deltaBytes(delta)
    const growing = this.#growing.get(delta.candidate)
    const into = growing?.message.delta
    if (growing !== undefined && into !== undefined && growing.bytes + bytes <= messageBytesTarget) {
      into.tokens.push(...delta.tokens)
      into.text += delta.text
      if (delta.finish !== undefined) into.finish = delta.finish
      growing.bytes += bytes
      this.#count(bytes)
      return
    }
    const waiting = { message: { request_id: this.#requestId, delta }, bytes }
    this.#growing.set(delta.candidate, waiting)
    this.#enqueue(waiting)
  }

  /** After all that waits. */
  end(): void {
    this.#ends = true
    this.#schedule()
  }

  /** At once: what waits is dropped. */
  fail(error: unknown): void {
    if (this.#state === 'closed') return
    this.close()
    this.#call.emit('error', toServiceError(error))
  }

  /** The client is gone: nothing is sent any more. */
  close(): void {
    this.#state = 'closed'
    this.#waiting = []
    this.#growing.clear()
    this.#waitingBytes = 0
  }

  #enqueue(waiting: Waiting): void {
    if (this.#state === 'closed') return
    this.#waiting.push(waiting)
    this.#count(waiting.bytes)
    this.#schedule()
  }

  #count(bytes: number): void {
    this.#waitingBytes += bytes
    if (this.#waitingBytes <= unsentBytesMax) return
    const error = new MoeshError(
      'CLIENT_SLOW',
      `the client has left ${this.#waitingBytes} bytes unread, at most ${unsentBytesMax} wait`,
      'read faster or ask for fewer log-probabilities; Resume continues the request',
    )
    this.fail(error)
    this.#onOverflow(error)
  }

  /** Later in this turn, so that a token and the finish that follows it travel together. */
  #schedule(): void {
    if (this.#state !== 'idle') return
    this.#state = 'scheduled'
    queueMicrotask(() => this.#write())
  }

  #write(): void {
    if (this.#state !== 'scheduled') return
    const next = this.#waiting.shift()
    if (next === undefined) {
      this.#state = 'idle'
      if (this.#ends) {
        this.close()
        this.#call.end()
      }
      return
    }
    const { delta } = next.message
    if (delta !== undefined && this.#growing.get(delta.candidate) === next) this.#growing.delete(delta.candidate)
    this.#state = 'writing'
    this.#call.write(next.message, () => {
      // Only once it has left the process does it count no more.
      if (this.#state !== 'writing') return
      this.#waitingBytes -= next.bytes
      this.#state = 'scheduled'
      this.#write()
    })
  }
}

/** About what a delta takes on the wire and in memory before; the lists decide, the rest is a constant. */
function deltaBytes(delta: DeltaMessage): number {
  return 32 + 3 * delta.text.length + delta.tokens.reduce((sum, token) => sum + tokenBytes(token), 0)
}

export function tokenBytes({ logprobs, experts }: TokenInfoMessage): number {
  const ofLogprobs = logprobs === undefined ? 0 : 16 + 12 * logprobs.top.length + 4 * logprobs.all.length
  const ofExperts = experts?.reduce((sum, layer) => sum + 8 + 8 * layer.weights.length, 0) ?? 0
  return 16 + ofLogprobs + ofExperts
}
