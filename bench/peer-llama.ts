import { randomInt } from 'node:crypto'
import { type LlamaBinding, type LlamaContext, type LlamaModel, loadBinding } from './peer-binding.ts'
import { nextWord, randomTokens, streamFor, type XorshiftState } from './random.ts'
import type { Target } from './target.ts'

/**
 * llama.cpp on the same weights, in the setting that is fastest for it: mapped weights, half-precision cache, flash
 * attention. Prompts compute the head for their last token alone; decoding draws no token (the next one is random), so
 * that sampling counts for the peer, not against it.
 */
export class LlamaTarget implements Target {
  readonly #binding: LlamaBinding
  readonly #model: LlamaModel
  readonly #vocabulary: number
  readonly #random: XorshiftState
  readonly #threads: number
  /** Each number of sequences has a context of its own, filled with prompts on first use. */
  readonly #decoding = new Map<string, LlamaContext>()
  readonly #prefill = new Map<number, LlamaContext>()

  private constructor(binding: LlamaBinding, model: LlamaModel, vocabulary: number, threads: number, seed: number) {
    this.#binding = binding
    this.#model = model
    this.#vocabulary = vocabulary
    this.#threads = threads
    this.#random = streamFor(seed, 'peer')
  }

  static async open(
    path: string,
    vocabulary: number,
    threads: number,
    seed = randomInt(2 ** 31),
  ): Promise<LlamaTarget> {
    const binding = await loadBinding()
    const model = new binding.AddonModel(path, { useMmap: true })
    if (!(await model.init())) throw new Error(`llama.cpp does not load ${path}`)
    return new LlamaTarget(binding, model, vocabulary, threads, seed)
  }

  async prefill(rows: number): Promise<number> {
    const context = this.#prefill.get(rows) ?? (await this.#context(1, rows, rows))
    this.#prefill.set(rows, context)
    const seconds = await this.#feed(context, 0, rows)
    context.disposeSequence(0)
    return seconds
  }

  async decode(sequences: number, context: number, steps: number): Promise<number> {
    const warmup = 2
    const filled = await this.#filled(sequences, context, warmup + steps)
    for (let step = 0; step < warmup; step++) await this.#step(filled, sequences, context + step)
    const startMs = performance.now()
    for (let step = warmup; step < warmup + steps; step++) await this.#step(filled, sequences, context + step)
    const seconds = (performance.now() - startMs) / 1000
    for (let sequence = 0; sequence < sequences; sequence++) filled.removeTokenCellsFromSequence(sequence, context, -1)
    return seconds
  }

  /** Natural logarithms of the next token's probabilities, by token id. */
  async logprobs(prompt: readonly number[]): Promise<Float64Array> {
    const context = await this.#context(1, prompt.length + 1, prompt.length)
    const sampler = new this.#binding.AddonSampler(this.#model)
    try {
      context.initBatch(prompt.length)
      const [index = 0] = context.addToBatch(0, 0, Uint32Array.from(prompt), Uint32Array.of(prompt.length - 1))
      await context.decodeBatch()
      sampler.applyConfig({ temperature: 1 })
      const [, pairs] = await context.sampleToken(index, sampler, true)
      const result = new Float64Array(this.#vocabulary).fill(Number.NEGATIVE_INFINITY)
      for (let i = 0; i < pairs.length; i += 2) result[pairs[i] ?? 0] = Math.log(pairs[i + 1] ?? 0)
      return result
    } finally {
      sampler.dispose()
      await context.dispose()
    }
  }

  async close(): Promise<void> {
    for (const context of [...this.#decoding.values(), ...this.#prefill.values()]) await context.dispose()
    await this.#model.dispose()
  }

  async #filled(sequences: number, length: number, further: number): Promise<LlamaContext> {
    const key = `${sequences}/${length}/${further}`
    const found = this.#decoding.get(key)
    if (found !== undefined) return found
    const context = await this.#context(sequences, length + further, Math.max(length, sequences))
    for (let sequence = 0; sequence < sequences; sequence++) await this.#feed(context, sequence, length)
    this.#decoding.set(key, context)
    return context
  }

  async #context(sequences: number, length: number, batchSize: number): Promise<LlamaContext> {
    // The room for one sequence is a multiple of this, whatever is asked for.
    const room = Math.ceil(length / 256) * 256
    const context = new this.#binding.AddonContext(this.#model, {
      contextSize: sequences * room,
      batchSize,
      sequences,
      threads: this.#threads,
      flashAttention: true,
    })
    if (!(await context.init())) throw new Error(`llama.cpp has no room for ${sequences} sequences of ${room}`)
    return context
  }

  /** A whole prompt at once, the head for its last token. Seconds. */
  async #feed(context: LlamaContext, sequence: number, rows: number): Promise<number> {
    const tokens = Uint32Array.from(randomTokens(this.#random, rows, this.#vocabulary))
    const startMs = performance.now()
    context.initBatch(rows)
    context.addToBatch(sequence, 0, tokens, Uint32Array.of(rows - 1))
    await context.decodeBatch()
    return (performance.now() - startMs) / 1000
  }

  async #step(context: LlamaContext, sequences: number, position: number): Promise<void> {
    context.initBatch(sequences)
    for (let sequence = 0; sequence < sequences; sequence++) {
      const token = nextWord(this.#random) % this.#vocabulary
      context.addToBatch(sequence, position, Uint32Array.of(token), Uint32Array.of(0))
    }
    await context.decodeBatch()
  }
}
