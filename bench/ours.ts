import { randomInt, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { ApiClient } from '../services/cli/client.ts'
import { randomTokens, streamFor, type XorshiftState } from './random.ts'
import type { Target } from './target.ts'

/**
 * A running server, measured from outside by its public API: the network stack, scheduling, sampling and streaming of
 * tokens are all inside the figures.
 */

/**
 * Drawn tokens, since a greedy continuation under random weights soon repeats itself, and sequences that repeat
 * themselves would share experts that real ones do not.
 */
const sampling = { temperature: 1, top_k: 50, ignore_eos: true }

/** Tokens of each sequence before measuring begins. */
const warmupTokens = 2
/** While the last prompts are read, the first sequences already decode; none may end before the measurement does. */
const spareTokens = 256
/** A cancelled stream leaves the server's next step; measuring begins after that. */
const settleMs = 100

const responseSchema = z.object({
  delta: z.object({ tokens: z.array(z.unknown()), finish: z.unknown() }).nullable(),
})

export class MoeshTarget implements Target {
  readonly #client: ApiClient
  readonly #vocabulary: number
  readonly #random: XorshiftState

  private constructor(client: ApiClient, vocabulary: number, seed: number) {
    this.#client = client
    this.#vocabulary = vocabulary
    this.#random = streamFor(seed, 'ours')
  }

  static async open(server: string, vocabulary: number, seed = randomInt(2 ** 31)): Promise<MoeshTarget> {
    const client = await ApiClient.open({ server, tlsCert: undefined, tlsKey: undefined, tlsCa: undefined })
    return new MoeshTarget(client, vocabulary, seed)
  }

  /** Time to the first token. */
  async prefill(rows: number): Promise<number> {
    const request = this.#request(rows, 1)
    const startMs = performance.now()
    for await (const message of this.#client.stream('moesh.v1.Inference/Generate', request)) {
      if ((responseSchema.parse(message).delta?.tokens.length ?? 0) > 0) return (performance.now() - startMs) / 1000
    }
    throw new Error('the stream ended without a token')
  }

  async decode(sequences: number, context: number, steps: number): Promise<number> {
    const abort = new AbortController()
    const arrivals = new Arrivals(sequences, steps)
    const streams = Array.from({ length: sequences }, (_, sequence) =>
      this.#follow(this.#request(context, steps + spareTokens), sequence, arrivals, abort.signal),
    )
    try {
      // A stream that fails, or ends of itself, ends the measurement.
      await Promise.race([arrivals.complete, ...streams])
    } finally {
      abort.abort()
      await Promise.allSettled(streams)
      await sleep(settleMs)
    }
    return arrivals.seconds()
  }

  async close(): Promise<void> {
    this.#client.close()
  }

  async #follow(request: object, sequence: number, arrivals: Arrivals, signal: AbortSignal): Promise<never> {
    for await (const message of this.#client.stream('moesh.v1.Inference/Generate', request, signal)) {
      const count = responseSchema.parse(message).delta?.tokens.length ?? 0
      arrivals.add(sequence, count, performance.now())
    }
    throw new Error('a stream ended before the measurement did')
  }

  #request(rows: number, maxTokens: number): object {
    return {
      request_id: randomUUID(),
      token_ids: { ids: randomTokens(this.#random, rows, this.#vocabulary) },
      sampling: { ...sampling, seed: String(randomInt(2 ** 31)), max_tokens: maxTokens },
      output: { no_text: true },
    }
  }
}

/**
 * When each token came. Measuring begins once every sequence has its first tokens, and ends when each has `steps` more:
 * in between all of them decode, and nothing else runs.
 */
export class Arrivals {
  readonly #timesMs: number[][]
  readonly #steps: number
  /** Per sequence, how many tokens it had when the last one began; null before. */
  #counted: number[] | null = null
  readonly #done = Promise.withResolvers<void>()

  constructor(sequences: number, steps: number) {
    this.#timesMs = Array.from({ length: sequences }, () => [])
    this.#steps = steps
  }

  get complete(): Promise<void> {
    return this.#done.promise
  }

  add(sequence: number, tokens: number, nowMs: number): void {
    const times = this.#timesMs[sequence] ?? []
    for (let i = 0; i < tokens; i++) times.push(nowMs)
    if (this.#counted === null && this.#timesMs.every(({ length }) => length >= warmupTokens)) {
      this.#counted = this.#timesMs.map(({ length }) => length)
    }
    const counted = this.#counted
    if (counted === null) return
    if (this.#timesMs.every(({ length }, index) => length >= (counted[index] ?? 0) + this.#steps)) this.#done.resolve()
  }

  /** Of one step of all sequences, times `steps`: the sequences' rates added, each from its own tokens. */
  seconds(): number {
    const counted = this.#counted
    if (counted === null) throw new Error('not every sequence decoded')
    const rates = this.#timesMs.map((times, index) => {
      const first = (counted[index] ?? 0) - 1
      const beginMs = times[first]
      const endMs = times[first + this.#steps]
      if (beginMs === undefined || endMs === undefined) throw new Error('a sequence ended before the measurement did')
      return this.#steps / ((endMs - beginMs) / 1000)
    })
    const tokens = this.#timesMs.length * this.#steps
    return tokens / rates.reduce((sum, rate) => sum + rate, 0)
  }
}
