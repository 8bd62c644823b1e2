import { randomBytes, randomUUID } from 'node:crypto'
import { Metadata, type UntypedServiceImplementation } from '@grpc/grpc-js'
import { asMoeshError, MoeshError } from '../../config/errors.ts'
import { requestsInFlightMax, tokenizeBytesMax } from '../../config/limits.ts'
import type { ClusterView } from '../cluster-view.ts'
import type { Journal } from '../journal.ts'
import { type ReportDefect, unary } from './failure.ts'
import { Generation } from './generate.ts'
import { JournalWriter } from './journal-writer.ts'
import { describeModel, findModel, type ServedModel, type ServedModels, textOf } from './models.ts'
import { type ReplyCall, ReplyStream } from './reply.ts'
import { chatIds, checkIds, type ResolvedRequest, resolveRequest } from './resolve.ts'
import { readStoredRequest, storeRequest } from './stored-request.ts'
import {
  cancelRequest,
  detokenizeRequest,
  generateRequest,
  readRequest,
  resumeRequest,
  tokenizeRequest,
} from './wire.ts'

export type InferenceOptions = {
  models: ServedModels
  journal: Journal
  cluster: Pick<ClusterView, 'cancelElsewhere'>
  report: ReportDefect
}

/** moesh.v1.Inference. */
export class InferenceService {
  readonly #options: InferenceOptions
  readonly #running = new Map<string, Generation>()
  #isDraining = false
  #onIdle: (() => void) | null = null

  constructor(options: InferenceOptions) {
    this.#options = options
  }

  get handlers(): UntypedServiceImplementation {
    const { report } = this.#options
    return {
      Generate: (call: ReplyCall) => this.#stream(call, 'Generate', () => this.#generate(call)),
      Resume: (call: ReplyCall) => this.#stream(call, 'Resume', () => this.#resume(call)),
      Cancel: unary('Cancel', report, (message) => this.#cancel(message)),
      Tokenize: unary('Tokenize', report, (message) => this.#tokenize(message)),
      Detokenize: unary('Detokenize', report, (message) => this.#detokenize(message)),
      ListModels: unary('ListModels', report, () => ({ models: this.#options.models().map(describeModel) })),
    }
  }

  get runningCount(): number {
    return this.#running.size
  }

  /** Takes no new requests and settles when the last has ended, or has been told to resume elsewhere at `deadline`. */
  async drain(deadline: AbortSignal): Promise<void> {
    this.#isDraining = true
    if (this.#running.size > 0 && !deadline.aborted) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve
        deadline.addEventListener('abort', () => resolve(), { once: true })
      })
    }
    for (const generation of [...this.#running.values()]) {
      generation.interrupt(
        new MoeshError('SHUTTING_DOWN', 'this coordinator is shutting down', 'Resume on another one'),
      )
    }
  }

  #stream(call: ReplyCall, method: string, start: () => Promise<void>): void {
    Promise.resolve()
      .then(() => this.#checkTakesRequests())
      .then(start)
      .catch((thrown: unknown) => {
        const error = asMoeshError(thrown)
        if (error.code === 'INTERNAL') this.#options.report(error, method)
        new ReplyStream(call, '', () => {}).fail(error)
      })
  }

  #checkTakesRequests(): void {
    if (this.#isDraining) throw new MoeshError('SHUTTING_DOWN', 'this coordinator is shutting down', 'use another one')
    if (this.#running.size >= requestsInFlightMax) {
      throw new MoeshError('QUEUE_FULL', `${this.#running.size} requests are in flight here`, 'try again later')
    }
  }

  async #generate(call: ReplyCall): Promise<void> {
    const message = readRequest(generateRequest, call.request)
    const id = message.request_id === '' ? randomUUID() : message.request_id
    if (this.#running.has(id)) {
      throw new MoeshError('REQUEST_EXISTS', `request_id: "${id}" is running`, 'choose another one, or Resume it')
    }
    const model = findModel(this.#options.models(), message.model)
    const request = resolveRequest(message, id, model, () => randomBytes(8).readBigUInt64LE())
    const journal = this.#openJournal(request, [], () => this.#options.journal.put(id, storeRequest(request)))
    this.#start(call, request, model, journal)
  }

  async #resume(call: ReplyCall): Promise<void> {
    const message = readRequest(resumeRequest, call.request)
    const id = message.request_id
    const entry = await this.#options.journal.get(id)
    if (entry === null) {
      throw new MoeshError(
        'REQUEST_UNKNOWN',
        `request_id: no request "${id}" is known`,
        'it ended long ago or never began; send it again with Generate',
      )
    }
    const request = readStoredRequest(entry.request)
    const model = findModel(this.#options.models(), request.model)
    if (model.fingerprint !== request.fingerprint) {
      throw new MoeshError(
        'RESUME_IMPOSSIBLE',
        `request "${id}" began with ${request.fingerprint}, and ${model.fingerprint} is served now`,
        'send it again with Generate',
      )
    }
    const { candidates } = request.engine
    const received = Array.from({ length: candidates }, () => 0)
    for (const { key, value } of message.received) {
      if (key >= candidates) {
        throw new MoeshError('INVALID_ARGUMENT', `received: there is no candidate ${key}; n was ${candidates}`)
      }
      received[key] = value
    }
    // The client comes back before this process noticed that it was gone.
    this.#running.get(id)?.interrupt(new MoeshError('CANCELLED', `request "${id}" was resumed on another stream`))
    const known = received.map((_, candidate) => entry.tokens[candidate] ?? [])
    const journal = this.#openJournal(
      request,
      known.map((tokens) => tokens.length),
      () => this.#options.journal.countResume(id),
    )
    this.#start(call, request, model, journal, { received, tokens: known, count: entry.resumed + 1 })
  }

  #openJournal(request: ResolvedRequest, known: readonly number[], open: () => Promise<void>): JournalWriter {
    return new JournalWriter({
      journal: this.#options.journal,
      id: request.engine.id,
      known: Array.from({ length: request.engine.candidates }, (_, candidate) => known[candidate] ?? 0),
      open,
      onError: (error) => this.#options.report(error, 'journal'),
    })
  }

  #start(
    call: ReplyCall,
    request: ResolvedRequest,
    model: ServedModel,
    journal: JournalWriter,
    resume?: { received: readonly number[]; tokens: readonly (readonly number[])[]; count: number },
  ): void {
    const { id } = request.engine
    const reply = new ReplyStream(call, id, () => generation.abandon())
    const generation = new Generation({
      request,
      model,
      reply,
      journal,
      ...(resume === undefined ? {} : { resume }),
      onEnd: () => {
        if (this.#running.get(id) === generation) this.#running.delete(id)
        if (this.#running.size === 0) this.#onIdle?.()
      },
    })
    call.on('cancelled', () => generation.abandon())
    this.#running.set(id, generation)
    try {
      // While it waits in the queue, the client can already name it.
      const metadata = new Metadata()
      metadata.set('moesh-request-id', id)
      call.sendMetadata(metadata)
      generation.start()
    } catch (thrown) {
      generation.interrupt(asMoeshError(thrown))
    }
    if (call.cancelled) generation.abandon()
  }

  async #cancel(message: unknown): Promise<object> {
    const { request_id: id } = readRequest(cancelRequest, message)
    const generation = this.#running.get(id)
    if (generation !== undefined) {
      generation.cancel()
      return {}
    }
    if (await this.#options.cluster.cancelElsewhere(id)) return {}
    throw new MoeshError('REQUEST_UNKNOWN', `request_id: no request "${id}" is running`)
  }

  #tokenize(raw: unknown): object {
    const message = readRequest(tokenizeRequest, raw)
    const model = findModel(this.#options.models(), message.model)
    if (message.input === 'chat') {
      if (message.chat == null) throw new MoeshError('INVALID_ARGUMENT', 'chat: is unset')
      const { ids, rendered } = chatIds(message.chat, model)
      return { ids, offsets: [], rendered }
    }
    const text = message.text ?? ''
    const bytes = Buffer.byteLength(text)
    if (bytes > tokenizeBytesMax) {
      throw new MoeshError('INVALID_ARGUMENT', `text: has ${bytes} bytes; at most ${tokenizeBytesMax} are allowed`)
    }
    const tokenizer = textOf(model, 'text')
    const { ids, byteOffsets } = tokenizer.encodeWithOffsets(text, { special: !message.no_special_tokens })
    return { ids, offsets: byteOffsets, rendered: '' }
  }

  #detokenize(raw: unknown): object {
    const message = readRequest(detokenizeRequest, raw)
    const model = findModel(this.#options.models(), message.model)
    checkIds('ids', message.ids, model)
    return { text: textOf(model, 'ids').decode(message.ids, { skipSpecial: message.skip_special_tokens }) }
  }
}
