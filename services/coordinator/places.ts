import assert from 'node:assert/strict'
import type { KvBlocks } from './kv-blocks.ts'
import { looksBack } from './sampling.ts'
import type { Sequence } from './sequence.ts'
import type { Team } from './team/team.ts'

/** What a candidate needs to go on from another's prompt: the rest of a block, and its next token. */
const forkBlocksMax = 2

/** Where sequences run: each has a slot of the team, and blocks of the KV cache. */
export class Places {
  readonly #team: Pick<Team, 'tell'>
  readonly #kv: KvBlocks
  readonly #freeSlots: number[]

  constructor(team: Pick<Team, 'tell'>, kv: KvBlocks, count: number) {
    this.#team = team
    this.#kv = kv
    this.#freeSlots = Array.from({ length: count }, (_, slot) => slot).reverse()
  }

  /** Begins with what is found of its tokens; there must be a slot. */
  take(sequence: Sequence): void {
    this.#takeSlot(sequence)
    this.#kv.begin(sequence)
    this.#tellBegin(sequence)
  }

  /** `to` goes on where `from` is; false: there is no room now. */
  fork(from: Sequence, to: Sequence): boolean {
    if (this.#freeSlots.length === 0 || from.slot === null || this.#kv.free < forkBlocksMax) return false
    const slot = this.#takeSlot(to)
    this.#tellBegin(to)
    const block = this.#kv.fork(from, to)
    this.#team.tell({ kind: 'fork', from: from.slot, slot, block })
    return true
  }

  giveBack(sequence: Sequence): void {
    if (sequence.slot === null) return
    this.#kv.release(sequence)
    this.#team.tell({ kind: 'free', slot: sequence.slot })
    this.#freeSlots.push(sequence.slot)
    sequence.slot = null
  }

  #takeSlot(sequence: Sequence): number {
    const slot = this.#freeSlots.pop()
    assert(slot !== undefined)
    sequence.slot = slot
    return slot
  }

  /** Its tokens from `cached` on are fed to the team; of those before it tells where a draw looks back at them. */
  #tellBegin({ slot, candidate, request: { request }, tokens, cached }: Sequence): void {
    assert(slot !== null)
    const { promptIds, sampling } = request
    const known = looksBack(sampling) ? tokens.slice(0, cached) : []
    this.#team.tell({ kind: 'begin', slot, candidate, promptTokens: promptIds.length, known, sampling })
  }
}
