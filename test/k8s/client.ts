import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type ChannelCredentials,
  type ChannelOptions,
  type ClientReadableStream,
  loadPackageDefinition,
  type ServiceError,
  status,
} from '@grpc/grpc-js'
import { load } from '@grpc/proto-loader'
import { repository } from './kit.ts'

export type Prompt = { readonly text: string; readonly seed: number; readonly maxTokens: number }

export type Generated = {
  readonly tokens: readonly number[]
  readonly firstTokenMs: number
  /** The longest time between two tokens. */
  readonly gapMsMax: number
  readonly resumes: number
}

/** A client of the public API: only what the .proto files say, as any user's would be. */
export class MoeshClient {
  readonly #service: Service

  private constructor(service: Service) {
    this.#service = service
  }

  static async open(
    address: string,
    credentials: ChannelCredentials,
    options: ChannelOptions = {},
  ): Promise<MoeshClient> {
    const file = join(repository, 'proto/moesh/v1/inference.proto')
    const definition = await load(file, { keepCase: true, longs: String, defaults: true, oneofs: true })
    const api = loadPackageDefinition(definition) as unknown as { moesh: { v1: { Inference: ServiceConstructor } } }
    const reconnect = { 'grpc.initial_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 1000 }
    return new MoeshClient(new api.moesh.v1.Inference(address, credentials, { ...reconnect, ...options }))
  }

  close(): void {
    this.#service.close()
  }

  /** Resumes where the connection or the coordinator went away; any other failure throws. */
  async generate(prompt: Prompt, requestId: string): Promise<Generated> {
    const from = performance.now()
    const tokens: number[] = []
    let resumes = 0
    const reasons: string[] = []
    let lastMs = from
    let firstTokenMs = Number.NaN
    let gapMsMax = 0
    const onResponse = ({ delta }: Response) => {
      if (delta == null || delta.tokens.length === 0) return
      const now = performance.now()
      if (tokens.length === 0) firstTokenMs = now - from
      else gapMsMax = Math.max(gapMsMax, now - lastMs)
      lastMs = now
      tokens.push(...delta.tokens.map(({ id }) => id))
    }
    const begin = () =>
      this.#service.Generate({
        text: prompt.text,
        request_id: requestId,
        sampling: { temperature: 1, seed: String(prompt.seed), max_tokens: prompt.maxTokens, ignore_eos: true },
      })
    let stream = begin()
    for (;;) {
      const error = await ended(stream, onResponse)
      if (error === null) return { tokens, firstTokenMs, gapMsMax, resumes }
      const isLost = error.code === status.UNAVAILABLE || error.code === status.CANCELLED
      const isUnknown = error.code === status.NOT_FOUND && resumes > 0 && tokens.length === 0
      if (!(isLost || isUnknown) || resumes >= resumesMax) {
        error.message += `; after ${tokens.length} tokens and ${reasons.length === 0 ? 'no interruption' : reasons.join(', ')}`
        throw error
      }
      resumes += 1
      reasons.push(error.message)
      await sleep(200)
      // A request that never arrived is not known anywhere: it starts again, which its id makes safe.
      stream = isUnknown ? begin() : this.#service.Resume({ request_id: requestId, received: { 0: tokens.length } })
    }
  }
}

const resumesMax = 50

type Response = { delta: { tokens: { id: number }[] } | null }
type Service = {
  Generate(request: object): ClientReadableStream<Response>
  Resume(request: object): ClientReadableStream<Response>
  close(): void
}
type ServiceConstructor = new (address: string, credentials: ChannelCredentials, options: ChannelOptions) => Service

function ended(
  stream: ClientReadableStream<Response>,
  onResponse: (response: Response) => void,
): Promise<ServiceError | null> {
  return new Promise((resolve) => {
    stream.on('data', onResponse)
    stream.on('error', (error: ServiceError) => resolve(error))
    stream.on('end', () => resolve(null))
  })
}
