import type { KvBlocks } from './kv-blocks.ts'
import type { KvPool } from './kv-pool.ts'
import type { Team } from './team/team.ts'

/** How what is in the KV cache gets out, and in: a block at a time, between steps, by its name. */
export interface KvExchange {
  /** Rises when the same tokens give other bits from then on. */
  era(): number
  /** How many of `names`, from the first on without a gap, are here. */
  held(names: readonly string[]): number
  /** `blockBytes` in a buffer of their own; null: it is not here (any more). */
  read(name: string): Promise<Uint8Array | null>
  /** Takes a block of `era` over; false where there is no room for it, or it would not be found. */
  write(name: string, block: Uint8Array, era: number): Promise<boolean>
  /** Blocks that may be taken over without giving up what was just taken over. */
  free(): number
  /** They were of use now: they stay longest, the first ones longer than the last. */
  refresh(names: readonly string[]): void
  /** Of a block: [layers], keys [KV heads, tokens, head dim], then as many values, f32. */
  readonly blockBytes: number
  /** Names that can be found since the last call (true), or can't be any more (false). */
  changes(): ReadonlyMap<string, boolean>
  /** All names that can be found. */
  names(): string[]
}

/** A step waits so long at most, but for one block. */
const workMs = 5

export class StepwiseExchange implements KvExchange {
  readonly blockBytes: number
  readonly #kv: Pick<KvBlocks, 'era'>
  readonly #pool: KvPool
  readonly #team: Pick<Team, 'buffers' | 'moveBlock'>
  readonly #nowMs: () => number
  readonly #onWork: () => void
  #queue: (() => Promise<void>)[] = []
  #isClosed = false
  /** There was no memory for a block that the cache should have room for. */
  #isExhausted = false

  /** `onWork`: there is something to `work` on. */
  constructor(kv: KvBlocks, team: Pick<Team, 'buffers' | 'moveBlock'>, nowMs: () => number, onWork: () => void) {
    this.#kv = kv
    this.#pool = kv.pool
    this.#team = team
    this.#nowMs = nowMs
    this.#onWork = onWork
    this.blockBytes = team.buffers.kvBlock.byteLength
  }

  get hasWork(): boolean {
    return this.#queue.length > 0
  }

  era(): number {
    return this.#kv.era
  }

  held(names: readonly string[]): number {
    return this.#pool.find(names).length
  }

  changes(): ReadonlyMap<string, boolean> {
    return this.#pool.takeChanges()
  }

  names(): string[] {
    return this.#pool.names()
  }

  read(name: string): Promise<Uint8Array | null> {
    return this.#betweenSteps(null, async () => {
      const [block] = this.#pool.find([name])
      if (block === undefined) return null
      this.#pool.share(block)
      try {
        await this.#team.moveBlock(block, 'out')
        return Uint8Array.from(bytesOf(this.#team.buffers.kvBlock))
      } finally {
        this.#pool.release(block)
      }
    })
  }

  write(name: string, bytes: Uint8Array, era: number): Promise<boolean> {
    return this.#betweenSteps(false, async () => {
      if (era !== this.#kv.era) return false
      if (this.held([name]) > 0) return true
      if (this.#isExhausted || this.#pool.free === 0) return false
      const block = this.#pool.takeFresh()
      bytesOf(this.#team.buffers.kvBlock).set(bytes)
      try {
        await this.#team.moveBlock(block, 'in')
      } catch (thrown) {
        // No step must come upon it.
        this.#pool.withdraw(block)
        this.#isExhausted = true
        throw thrown
      }
      const isValid = era === this.#kv.era
      if (isValid) this.#pool.name(block, name)
      this.#pool.release(block)
      return isValid
    })
  }

  free(): number {
    return this.#pool.free
  }

  refresh(names: readonly string[]): void {
    for (const name of names.toReversed()) {
      for (const block of this.#pool.find([name])) {
        this.#pool.share(block)
        this.#pool.release(block)
      }
    }
  }

  /** The step loop calls it when no step runs. */
  async work(): Promise<void> {
    const endMs = this.#nowMs() + workMs
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      await next()
      if (this.#nowMs() >= endMs) break
    }
  }

  /** What waits is answered as if nothing were here. */
  async close(): Promise<void> {
    this.#isClosed = true
    for (const work of this.#queue.splice(0)) await work()
  }

  #betweenSteps<T>(closed: T, work: () => Promise<T>): Promise<T> {
    if (this.#isClosed) return Promise.resolve(closed)
    return new Promise((resolve, reject) => {
      this.#queue.push(() => (this.#isClosed ? Promise.resolve(closed) : work()).then(resolve, reject))
      this.#onWork()
    })
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array<SharedArrayBuffer>): Uint8Array<SharedArrayBuffer> {
  return new Uint8Array(buffer, byteOffset, byteLength)
}
