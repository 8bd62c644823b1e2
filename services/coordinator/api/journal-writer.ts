import { journalBatchMs, journalBatchTokens } from '../../config/limits.ts'
import type { Journal } from '../journal.ts'

/**
 * Brings one request's tokens to the journal in batches and in order, beside the stream and never in its way. When the
 * store fails, tokens wait for the next batch; there are no more of them than the request has.
 */
export class JournalWriter {
  readonly #journal: Journal
  readonly #id: string
  readonly #onError: (error: Error) => void
  readonly #open: () => Promise<void>
  #isOpen = false
  /** Per candidate: the tokens from `offset` on that the journal does not have yet. */
  readonly #batches: { offset: number; tokens: number[] }[]
  #waiting = 0
  #timer: NodeJS.Timeout | null = null
  #work: Promise<void>
  #isReported = false

  constructor(options: {
    journal: Journal
    id: string
    /** Tokens per candidate that the journal has already. */
    known: readonly number[]
    /** Puts the entry, or counts a resume. */
    open: () => Promise<void>
    onError: (error: Error) => void
  }) {
    this.#journal = options.journal
    this.#id = options.id
    this.#onError = options.onError
    this.#batches = options.known.map((offset) => ({ offset, tokens: [] }))
    this.#open = options.open
    this.#work = this.#attempt(() => this.#openEntry())
  }

  /** `index`: position in the candidate's output. What the journal has already is left out. */
  token(candidate: number, index: number, id: number): void {
    const batch = this.#batches[candidate]
    if (batch === undefined || index !== batch.offset + batch.tokens.length) return
    batch.tokens.push(id)
    this.#waiting++
    if (this.#waiting >= journalBatchTokens) this.#flush()
    else this.#timer ??= setTimeout(() => this.#flush(), journalBatchMs)
  }

  /** The stream ended, however it did. */
  finish(): void {
    this.#flush()
    this.#work = this.#work.then(() => this.#attempt(() => this.#journal.finish(this.#id)))
  }

  #flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    this.#waiting = 0
    this.#work = this.#work.then(() => this.#attempt(() => this.#writeBatches()))
  }

  /** Again with each batch until it succeeds: a request that began while the store was away must be resumable after. */
  async #openEntry(): Promise<void> {
    if (this.#isOpen) return
    await this.#open()
    this.#isOpen = true
  }

  async #writeBatches(): Promise<void> {
    await this.#openEntry()
    for (const [candidate, batch] of this.#batches.entries()) {
      if (batch.tokens.length === 0) continue
      const { offset, tokens } = batch
      const count = tokens.length
      await this.#journal.append(this.#id, candidate, offset, tokens.slice())
      batch.offset += count
      batch.tokens.splice(0, count)
    }
  }

  async #attempt(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (thrown) {
      if (!this.#isReported) this.#onError(thrown instanceof Error ? thrown : new Error(String(thrown)))
      this.#isReported = true
    }
  }
}
