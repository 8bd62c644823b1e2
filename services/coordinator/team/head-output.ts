import { createLogprobs, type Logprobs } from '../logprobs.ts'
import type { SamplingOptions } from '../request.ts'
import { addGenerated, createSampler, looksBack, type Sampler, type TokenHistory } from '../sampling.ts'
import type { Item } from './attention.ts'
import { drawToken, headWords, noLogprobs, resultWords, type StepBuffers } from './layout.ts'

type Drawing = {
  candidate: number
  promptTokens: number
  sampling: SamplingOptions
  /** Kept only where a penalty looks at it. */
  history: { prompt: Set<number>; generated: Map<number, number> } | null
}

const emptyHistory: TokenHistory = { prompt: new Set(), generated: new Map() }

function remember({ promptTokens, history }: Drawing, position: number, id: number): void {
  if (position < promptTokens) history?.prompt.add(id)
  else if (history) addGenerated(history, id)
}

/** From a row of logits to a token and its log-probabilities, for the rows that fall to one thread. */
export class HeadOutput {
  readonly #buffers: StepBuffers
  readonly #vocabulary: number
  readonly #topMax: number
  readonly #sampler: Sampler
  readonly #logprobs: Logprobs
  readonly #slots = new Map<number, Drawing>()

  constructor(vocabulary: number, topMax: number, buffers: StepBuffers) {
    this.#buffers = buffers
    this.#vocabulary = vocabulary
    this.#topMax = topMax
    this.#sampler = createSampler(vocabulary)
    this.#logprobs = createLogprobs(vocabulary)
  }

  begin(
    slot: number,
    candidate: number,
    promptTokens: number,
    known: readonly number[],
    sampling: SamplingOptions,
  ): void {
    const history = looksBack(sampling) ? { prompt: new Set<number>(), generated: new Map<number, number>() } : null
    const drawing = { candidate, promptTokens, sampling, history }
    this.#slots.set(slot, drawing)
    for (const [position, id] of known.entries()) remember(drawing, position, id)
  }

  /** A candidate begins where another one's prompt ends. */
  copy(from: number, to: number): void {
    const source = this.#slots.get(from)?.history
    const target = this.#slots.get(to)?.history
    if (source && target) for (const id of source.prompt) target.prompt.add(id)
  }

  free(slot: number): void {
    this.#slots.delete(slot)
  }

  /** The tokens that a step feeds are what the penalties look back at. */
  beginStep(items: readonly Item[]): void {
    for (const { slot, start, count, row } of items) {
      const drawing = this.#slots.get(slot)
      if (!drawing?.history) continue
      for (let i = 0; i < count; i++) remember(drawing, start + i, this.#buffers.tokens[row + i] ?? 0)
    }
  }

  /** Writes the results of row `index` of the head slice. */
  write(index: number): void {
    const { head, logits, results, chosen, topIds, topLogprobs } = this.#buffers
    const at = index * headWords.size
    const row = logits.subarray(index * this.#vocabulary, (index + 1) * this.#vocabulary)
    const drawing = this.#slots.get(head[at + headWords.slot] ?? 0)
    let token = head[at + headWords.target] ?? 0
    if (token === drawToken) {
      // Its sequence was ended while the step ran.
      if (!drawing) return
      const position = head[at + headWords.position] ?? 0
      const { sampling, candidate, history } = drawing
      token = this.#sampler.sample(row, sampling, position, candidate, history ?? emptyHistory)
    }
    const resultAt = index * resultWords.size
    results[resultAt + resultWords.token] = token
    results[resultAt + resultWords.topCount] = 0
    const wanted = head[at + headWords.top] ?? noLogprobs
    if (wanted === noLogprobs) return
    const logprobs = this.#logprobs.of(row, token, wanted)
    results[resultAt + resultWords.rank] = logprobs.rank
    chosen[index] = logprobs.chosen
    results[resultAt + resultWords.topCount] = logprobs.top.length
    logprobs.top.forEach(({ id, logprob }, place) => {
      topIds[index * this.#topMax + place] = id
      topLogprobs[index * this.#topMax + place] = logprob
    })
    if (logprobs.all) row.set(logprobs.all)
  }
}
