import assert from 'node:assert/strict'

/**
 * The blocks of the KV cache, by number: how many sequences use each, and the names of those that may be found again. A
 * block whose last user goes keeps what it holds until it is needed for something else; those that were unused longest go
 * first (automatic prefix caching, as in vLLM: Kwon et al., 2023). Memory that was never touched costs page faults, and is
 * somebody else's until then: kept blocks are used again before it, until one is missed that more memory would have kept
 * (the ghost entries of ARC: Megiddo and Modha, 2003).
 */
export class KvPool {
  readonly #size: number
  readonly #tracks: boolean
  /** By block. */
  readonly #users: number[] = []
  readonly #names: (string | null)[] = []
  readonly #byName = new Map<string, number>()
  /** Unused blocks: named ones, the longest unused first, and ones that hold nothing. */
  readonly #kept = new Set<number>()
  readonly #blank: number[] = []
  /** Since they were last taken: names that came (true) and went (false). */
  #changes = new Map<string, boolean>()
  /** Names that went while there were untouched blocks; as many as those would have kept, the oldest first. */
  readonly #ghosts = new Set<string>()
  #withdrawn = 0
  /** Blocks that may be touched before kept ones are used again. */
  #worthTouching = 0

  /** `tracks`: somebody takes the changes. */
  constructor(size: number, tracks = false) {
    this.#size = size
    this.#tracks = tracks
  }

  /** Blocks that nobody uses. */
  get free(): number {
    return this.#kept.size + this.#blank.length + this.#size - this.#users.length
  }

  get used(): number {
    return this.#size - this.free - this.#withdrawn
  }

  /** Of the free ones, those that may be found. */
  get kept(): number {
    return this.#kept.size
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
    const isWorthTouching = this.#kept.size === 0 || this.#touched < this.#worthTouching
    return this.#use(this.#blank.pop() ?? (isWorthTouching ? this.#untouched() : undefined) ?? this.#forgotten())
  }

  /** The same, but what is kept goes only where nothing else is left. */
  takeFresh(): number {
    return this.#use(this.#blank.pop() ?? this.#untouched() ?? this.#forgotten())
  }

  /** A block that is used once goes for good. */
  withdraw(block: number): void {
    assert(this.users(block) === 1)
    this.#withdrawn += 1
  }

  #use(block: number | undefined): number {
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

  names(): string[] {
    return [...this.#byName.keys()]
  }

  /** Names that are found since the last call (true), and those that are not any more (false). */
  takeChanges(): ReadonlyMap<string, boolean> {
    const changes = this.#changes
    this.#changes = new Map()
    return changes
  }

  /** From now on it is found by that name, unless another is already: then it stays without one. */
  name(block: number, name: string): void {
    if (this.#byName.has(name)) return
    this.#byName.set(name, block)
    this.#names[block] = name
    if (this.#tracks) this.#changes.set(name, true)
  }

  /** Nothing of these names was found; from the first on without a gap, those that a larger cache had kept make it one. */
  miss(names: readonly string[]): void {
    for (const name of names) {
      if (!this.#ghosts.delete(name)) break
      this.#worthTouching = Math.max(this.#worthTouching, this.#touched) + 1
    }
  }

  /** Nothing that is held now is found from now on. */
  forget(): void {
    if (this.#tracks) for (const name of this.#byName.keys()) this.#changes.set(name, false)
    this.#byName.clear()
    this.#ghosts.clear()
    this.#names.fill(null)
    for (const block of this.#kept) this.#blank.push(block)
    this.#kept.clear()
  }

  get #touched(): number {
    return this.#users.length
  }

  #untouched(): number | undefined {
    return this.#touched < this.#size ? this.#touched : undefined
  }

  #forgotten(): number | undefined {
    const [block] = this.#kept
    if (block === undefined) return undefined
    this.#kept.delete(block)
    const name = this.#names[block] ?? ''
    this.#byName.delete(name)
    this.#names[block] = null
    if (this.#tracks) this.#changes.set(name, false)
    this.#ghosts.add(name)
    for (const oldest of this.#ghosts) {
      if (this.#ghosts.size <= this.#size - this.#touched) break
      this.#ghosts.delete(oldest)
    }
    return block
  }
}
