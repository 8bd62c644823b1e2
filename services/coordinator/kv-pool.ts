import assert from 'node:assert/strict'

/**
 * The blocks of the KV cache, by number: how many sequences use each, and the names of those that may be found again. A
 * block whose last user goes keeps what it holds until it is needed for something else; those that were unused longest go
 * first (automatic prefix caching, as in vLLM: Kwon et al., 2023).
 */
export class KvPool {
  readonly #size: number
  /** By block. */
  readonly #users: number[] = []
  readonly #names: (string | null)[] = []
  readonly #byName = new Map<string, number>()
  /** Unused blocks: named ones, the longest unused first, and ones that hold nothing. */
  readonly #kept = new Set<number>()
  readonly #blank: number[] = []

  constructor(size: number) {
    this.#size = size
  }

  /** Blocks that nobody uses. */
  get free(): number {
    return this.#kept.size + this.#blank.length + this.#size - this.#users.length
  }

  get used(): number {
    return this.#size - this.free
  }

  users(block: number): number {
    return this.#users[block] ?? 0
  }

  /** The blocks of `names`, from the first on without a gap. */
  find(names: readonly string[]): number[] {
    const found: number[] = []
    for (const name of names) {
      const block = this.#byName.get(name)
      if (block === undefined) break
      found.push(block)
    }
    return found
  }

  /** A block that holds nothing any more, used once. There must be a free one. */
  take(): number {
    const block = this.#blank.pop() ?? this.#untouched() ?? this.#forgotten()
    assert(block !== undefined)
    this.#users[block] = 1
    return block
  }

  /** One more user. */
  share(block: number): void {
    if (this.users(block) === 0) this.#kept.delete(block)
    this.#users[block] = this.users(block) + 1
  }

  /** One user less. */
  release(block: number): void {
    const left = this.users(block) - 1
    assert(left >= 0)
    this.#users[block] = left
    if (left > 0) return
    if (this.#names[block] == null) this.#blank.push(block)
    else this.#kept.add(block)
  }

  /** From now on it is found by that name, unless another is already: then it stays without one. */
  name(block: number, name: string): void {
    if (this.#byName.has(name)) return
    this.#byName.set(name, block)
    this.#names[block] = name
  }

  #untouched(): number | undefined {
    return this.#users.length < this.#size ? this.#users.length : undefined
  }

  #forgotten(): number | undefined {
    const [block] = this.#kept
    if (block === undefined) return undefined
    this.#kept.delete(block)
    this.#byName.delete(this.#names[block] ?? '')
    this.#names[block] = null
    return block
  }
}
