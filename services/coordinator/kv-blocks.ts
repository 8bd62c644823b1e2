import assert from 'node:assert/strict'
import { extendNames, findableBlocks } from './block-names.ts'
import { KvPool } from './kv-pool.ts'
import { type KvView, kvBlocks } from './scheduler.ts'
import type { Sequence } from './sequence.ts'
import { kvBlockTokens } from './team/kv-cache.ts'

/**
 * Which blocks of the KV cache each sequence has. A full block is named after all tokens up to its end, so a sequence that
 * begins with the same ones uses it instead of computing it again. That changes no bit: what a block holds depends on
 * those tokens alone, within an era.
 */
export class KvBlocks implements KvView<Sequence> {
  readonly pool: KvPool
  /** [slots, blocks of a sequence]: what the team's threads read. */
  readonly #table: Int32Array
  readonly #width: number
  /** Raised when the same tokens give other bits from then on. */
  #era = 0

  /** `tokensMax`: of all sequences; `width`: most blocks of one; `tracks`: somebody takes the changes. */
  constructor(tokensMax: number, table: Int32Array, width: number, tracks = false) {
    this.pool = new KvPool(kvBlocks(tokensMax), tracks)
    this.#table = table
    this.#width = width
  }

  get free(): number {
    return this.pool.free
  }

  get usedTokens(): number {
    return this.pool.used * kvBlockTokens
  }

  get keptTokens(): number {
    return this.pool.kept * kvBlockTokens
  }

  get era(): number {
    return this.#era
  }

  held({ blocks }: Sequence): number {
    return blocks.length
  }

  own({ blocks }: Sequence): number {
    return blocks.reduce((sum, block) => sum + (this.pool.users(block) === 1 ? 1 : 0), 0)
  }

  found(sequence: Sequence): { tokens: number; unused: number; blocks: number } {
    const blocks = this.#find(sequence)
    const unused = blocks.filter((block) => this.pool.users(block) === 0).length
    return { tokens: blocks.length * kvBlockTokens, unused, blocks: blocks.length }
  }

  /** A sequence that begins takes over what is found; before anybody extends. */
  begin(sequence: Sequence): void {
    assert(sequence.blocks.length === 0)
    const blocks = this.#find(sequence)
    this.pool.miss(sequence.names.slice(blocks.length))
    for (const block of blocks) {
      this.pool.share(block)
      this.#append(sequence, block)
    }
    sequence.cached = sequence.blocks.length * kvBlockTokens
    sequence.era = this.#era
  }

  /** What was computed before, and what running sequences still compute on top of it, is not found any more. */
  beginEra(): void {
    this.#era += 1
    this.pool.forget()
  }

  /** Room for `tokens` in all. */
  extend(sequence: Sequence, tokens: number): void {
    while (sequence.blocks.length < kvBlocks(tokens)) this.#append(sequence, this.pool.take())
  }

  /** Gives back what was needed for guesses that were wrong. */
  trim(sequence: Sequence): void {
    while (sequence.blocks.length > kvBlocks(sequence.cached)) this.pool.release(sequence.blocks.pop() ?? 0)
  }

  /** What was computed up to `cached` may be found from now on, in full blocks. */
  publish(sequence: Sequence, before: number): void {
    if (sequence.era !== this.#era) return
    const full = Math.floor(sequence.cached / kvBlockTokens)
    for (let index = Math.floor(before / kvBlockTokens); index < full; index++) {
      const block = sequence.blocks[index]
      assert(block !== undefined)
      this.pool.name(block, this.#nameOf(sequence, index))
    }
  }

  /**
   * `to` goes on where `from` is: it shares the full blocks, and gets one of its own for the rest, into which what `from`
   * has must be copied (null: there is no rest). There must be a free block.
   */
  fork(from: Sequence, to: Sequence): { from: number; to: number } | null {
    const full = Math.floor(from.cached / kvBlockTokens)
    for (const block of from.blocks.slice(0, full)) {
      this.pool.share(block)
      this.#append(to, block)
    }
    to.cached = from.cached
    to.era = from.era
    to.names = from.names.slice(0, full)
    const rest = from.blocks[full]
    if (from.cached % kvBlockTokens === 0 || rest === undefined) return null
    const copy = this.pool.take()
    this.#append(to, copy)
    return { from: rest, to: copy }
  }

  release(sequence: Sequence): void {
    // The end of a prefix is worth less than its beginning.
    for (const block of sequence.blocks.toReversed()) this.pool.release(block)
    sequence.blocks.length = 0
    sequence.cached = 0
  }

  #append(sequence: Sequence, block: number): void {
    assert(sequence.slot !== null)
    assert(sequence.blocks.length < this.#width)
    this.#table[sequence.slot * this.#width + sequence.blocks.length] = block
    sequence.blocks.push(block)
  }

  #find(sequence: Sequence): number[] {
    const { output } = sequence.request.request
    // What is asked of each token of the prompt has to be computed.
    if (output.promptLogprobs !== null || output.promptExpertTrace) return []
    const full = findableBlocks(sequence.tokens.length)
    extendNames(sequence.names, sequence.tokens, sequence.request.request.cacheSalt, full)
    return this.pool.find(sequence.names.slice(0, full))
  }

  #nameOf({ names, tokens, request }: Sequence, index: number): string {
    extendNames(names, tokens, request.request.cacheSalt, index + 1)
    return names[index] ?? ''
  }
}
