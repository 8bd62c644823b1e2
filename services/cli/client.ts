import { Client, type ClientReadableStream, Metadata, type ServiceError, status } from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import { MoeshError } from '../config/errors.ts'
import { openSecurity, type Security } from '../config/tls.ts'
import { loadProtos, serviceDefinition } from '../coordinator/api/protos.ts'

export type ServerOptions = {
  server: string
  tlsCert: string | undefined
  tlsKey: string | undefined
  tlsCa: string | undefined
}

/** 1 GiB: what one message may hold is the server's business; the command asked for it. */
const receiveBytesMax = 1024 * 1024 * 1024
/** Long prompts and log-probabilities need more than one 64 KiB window a round trip. */
const windowBytes = 16 * 1024 * 1024
/** A coordinator, as the commands talk to it: by the public protos alone. */
export class ApiClient {
  readonly #client: Client
  readonly #server: string
  readonly #security: Security | null
  readonly #protos = loadProtos()

  private constructor(server: string, client: Client, security: Security | null) {
    this.#server = server
    this.#client = client
    this.#security = security
  }

  /** Errors: USAGE, TLS_INVALID. */
  static async open(options: ServerOptions): Promise<ApiClient> {
    const { server, tlsCert, tlsKey, tlsCa } = options
    const security = await openSecurity({ tlsCert, tlsKey, tlsCa, listen: [], report: () => {} })
    const { credentials, options: dialOptions } = security.dial('coordinator')
    const client = new Client(server, credentials, {
      ...dialOptions,
      'grpc.max_receive_message_length': receiveBytesMax,
      'grpc-node.flow_control_window': windowBytes,
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': 1000,
    })
    return new ApiClient(server, client, security)
  }

  /** `method` as in `moesh.v1.Cluster/GetStatus`. Errors: those of the server, and SERVER_UNREACHABLE. */
  call(method: string, request: object): Promise<unknown> {
    const { path, requestSerialize, responseDeserialize } = this.#method(method)
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) => {
        if (error) reject(this.#explain(error))
        else resolve(response)
      })
    })
  }

  /** Messages as they come; ends the call when the loop is left. */
  async *stream(method: string, request: object, signal?: AbortSignal): AsyncGenerator<unknown> {
    const { path, requestSerialize, responseDeserialize } = this.#method(method)
    const call: ClientReadableStream<object> = this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      new Metadata(),
    )
    const cancel = () => call.cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    if (signal?.aborted === true) cancel()
    try {
      for await (const message of call) yield message
    } catch (thrown) {
      throw isServiceError(thrown) ? this.#explain(thrown) : thrown
    } finally {
      signal?.removeEventListener('abort', cancel)
      call.cancel()
    }
  }

  close(): void {
    this.#client.close()
    this.#security?.close()
  }

  #method(name: string): MethodDefinition<object, object> {
    const [service = '', method = ''] = name.split('/')
    const definition = serviceDefinition(this.#protos, service)[method]
    if (definition === undefined) throw new MoeshError('INTERNAL', `there is no method ${name}`)
    return definition as MethodDefinition<object, object>
  }

  #explain(error: ServiceError): MoeshError {
    if (error.code === status.UNAVAILABLE && error.metadata.get('moesh-code').length === 0)
      return this.#unreachable(error)
    const [code] = error.metadata.get('moesh-code')
    return new MoeshError('SERVER_REFUSED', error.details, '', { cause: { code: error.code, moeshCode: code } })
  }

  #unreachable(cause: Error): MoeshError {
    return new MoeshError(
      'SERVER_UNREACHABLE',
      `no coordinator answers at ${this.#server} (${cause.message})`,
      'start one with "moesh serve", or name another with --server',
      { cause },
    )
  }
}

function isServiceError(thrown: unknown): thrown is ServiceError {
  return thrown instanceof Error && 'code' in thrown && 'metadata' in thrown && thrown.metadata instanceof Metadata
}
