import type { AttentionKernel } from './attention-kernel.ts'

/** Tokens whose keys and values lie together; what a sequence gets at a time. */
export const kvBlockTokens = 32

export type CachedLayer = {
  /** KV heads of this thread, and the first of them. */
  readonly heads: number
  readonly firstHead: number
  /** Of all threads. */
  readonly allHeads: number
  readonly headDim: number
}

/**
 * The keys and values of one thread's KV heads, in blocks (PagedAttention: Kwon et al., 2023), which every thread knows
 * by the same numbers: whose they are is decided elsewhere (`KvBlocks`). A block is one piece for each layer,
 * [heads][kvBlockTokens][headDim] keys, then as many values, f32; it gets its memory when it is used first.
 */
export class KvCache {
  readonly #kernel: AttentionKernel
  readonly #layers: readonly CachedLayer[]
  /** Bytes from a block's begin to a layer's piece; last, to its end. */
  readonly #offsets: readonly number[]
  /** By block; 0: none yet. */
  readonly #addresses: number[] = []

  constructor(kernel: AttentionKernel, layers: readonly CachedLayer[]) {
    this.#kernel = kernel
    this.#layers = layers
    const offsets = [0]
    for (const { heads, headDim } of layers) {
      offsets.push((offsets.at(-1) ?? 0) + 2 * heads * kvBlockTokens * headDim * 4)
    }
    this.#offsets = offsets
  }

  /** Where a layer's piece of a block lies. */
  at(block: number, layer: number): number {
    return this.#begin(block) + (this.#offsets[layer] ?? 0)
  }

  copy(from: number, to: number): void {
    const source = this.#begin(from) / 4
    const target = this.#begin(to) / 4
    this.#kernel.floats.copyWithin(target, source, source + this.#bytes / 4)
  }

  /** This thread's part of a block into `all` of it: the same, but with the heads of all threads. */
  read(block: number, all: Float32Array): void {
    const begin = this.#begin(block) / 4
    const own = this.#kernel.floats
    this.#eachPart((from, to, length) => all.set(own.subarray(begin + from, begin + from + length), to))
  }

  /** Inverse of `read`. */
  write(block: number, all: Float32Array): void {
    const begin = this.#begin(block) / 4
    const own = this.#kernel.floats
    this.#eachPart((to, from, length) => own.set(all.subarray(from, from + length), begin + to))
  }

  /** Where the keys and the values of each layer lie in a block of this thread, and in one of all; in floats. */
  #eachPart(use: (own: number, all: number, length: number) => void): void {
    let own = 0
    let all = 0
    for (const { heads, firstHead, allHeads, headDim } of this.#layers) {
      const head = kvBlockTokens * headDim
      for (const values of [0, 1]) {
        use(own + values * heads * head, all + (values * allHeads + firstHead) * head, heads * head)
      }
      own += 2 * heads * head
      all += 2 * allHeads * head
    }
  }

  get #bytes(): number {
    return this.#offsets.at(-1) ?? 0
  }

  #begin(block: number): number {
    while (this.#addresses.length <= block) this.#addresses.push(0)
    const known = this.#addresses[block] ?? 0
    if (known > 0) return known
    const address = this.#kernel.allocate(this.#bytes)
    this.#addresses[block] = address
    return address
  }
}
