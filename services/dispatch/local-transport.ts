import { MoeshError } from '../config/errors.ts'
import type { Cancellation } from './cancellation.ts'
import type { ExpertCall, ExpertReply, ExpertTransport } from './transport.ts'

/** The part of an `ExpertHost` that a transport needs. */
export type CallableHost = { call(call: ExpertCall): Promise<ExpertReply> }

/**
 * Shared memory: the ranks read the rows and write the outputs where they lie. A rank cannot be stopped inside a call,
 * so a cancelled one settles when the ranks have let go of the buffers: some milliseconds, never a wait for a network.
 */
export function localTransport(nodeId: string, host: CallableHost): ExpertTransport {
  return new LocalTransport(nodeId, host)
}

class LocalTransport implements ExpertTransport {
  readonly nodeId: string
  readonly #host: CallableHost
  #closed = false

  constructor(nodeId: string, host: CallableHost) {
    this.nodeId = nodeId
    this.#host = host
  }

  async call(call: ExpertCall, cancellation?: Cancellation): Promise<ExpertReply> {
    this.#check(cancellation)
    const reply = await this.#host.call(call)
    this.#check(cancellation)
    return reply
  }

  async close(): Promise<void> {
    this.#closed = true
  }

  #check(cancellation: Cancellation | undefined): void {
    if (cancellation?.isCancelled) throw new MoeshError('CANCELLED', `the call to ${this.nodeId} was given up`)
    if (this.#closed) throw new MoeshError('NODE_LOST', `the way to ${this.nodeId} is closed`)
  }
}
