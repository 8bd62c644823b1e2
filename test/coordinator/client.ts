import { join } from 'node:path'
import { type CallOptions, Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js'
import { loadSync, type MethodDefinition, type ServiceDefinition } from '@grpc/proto-loader'
import { protoPath as healthProto } from 'grpc-health-check'

const root = join(import.meta.dirname, '..', '..')

/** From the .proto texts, as any client of any language reads them; not from our descriptor set. */
const protos = loadSync(
  [
    join(root, 'proto/moesh/v1/inference.proto'),
    join(root, 'proto/moesh/v1/cluster.proto'),
    join(root, 'proto/moesh/v1/profile.proto'),
    healthProto,
  ],
  { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
)

// biome-ignore lint/suspicious/noExplicitAny: a stock client's view of messages, whatever a test looks at
export type Message = any

export type Streamed = { messages: Message[]; error: ServiceError | null; headers: Metadata | null }

export class TestClient {
  readonly client: Client

  constructor(address: string) {
    this.client = new Client(address, credentials.createInsecure(), { 'grpc.max_receive_message_length': -1 })
  }

  call(method: string, request: object): Promise<Message> {
    const { path, requestSerialize, responseDeserialize } = definition(method)
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) => {
        if (error) reject(error)
        else resolve(response)
      })
    })
  }

  stream(method: string, request: object, options: CallOptions = {}) {
    const { path, requestSerialize, responseDeserialize } = definition(method)
    return this.client.makeServerStreamRequest<object, Message>(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      new Metadata(),
      options,
    )
  }

  /** The whole stream, with the error that ended it, if one did. */
  collect(method: string, request: object, options: CallOptions = {}): Promise<Streamed> {
    const call = this.stream(method, request, options)
    const result: Streamed = { messages: [], error: null, headers: null }
    return new Promise((resolve) => {
      call.on('metadata', (metadata) => {
        result.headers = metadata
      })
      call.on('data', (message) => result.messages.push(message))
      call.on('error', (error: ServiceError) => {
        result.error = error
        resolve(result)
      })
      call.on('end', () => setImmediate(() => resolve(result)))
    })
  }

  /** The error of a call that must fail. */
  async refused(method: string, request: object): Promise<ServiceError> {
    const { error } = await this.collect(method, request)
    if (error === null) throw new Error(`${method} was not refused`)
    return error
  }

  close(): void {
    this.client.close()
  }
}

function definition(method: string): MethodDefinition<object, object> {
  const [service = '', name = ''] = method.split('/')
  const found = protos[service] as ServiceDefinition
  const { [name]: definition } = found
  if (definition === undefined) throw new Error(`no method ${method}`)
  return definition
}

/** What a stream said of one candidate. */
export function outputOf(messages: readonly Message[], candidate = 0) {
  const deltas = messages.flatMap(({ delta }) => (delta?.candidate === candidate ? [delta] : []))
  return {
    ids: deltas.flatMap(({ tokens }) => tokens.map(({ id }: Message) => id)),
    text: deltas.map(({ text }) => text).join(''),
    pieces: deltas.map(({ text }) => text),
    offsets: deltas.map(({ offset }) => offset),
    finish: deltas.at(-1)?.finish ?? null,
    tokens: deltas.flatMap(({ tokens }) => tokens),
  }
}
