import assert from 'node:assert/strict'
import type { AttentionKernel } from './attention-kernel.ts'

/** Tokens whose keys and values lie together; what a sequence gets at a time. */
export const kvBlockTokens = 32

export type CachedLayer = {
  /** KV heads of this thread. */
  readonly heads: number
  readonly headDim: number
}

/**
 * The keys and values of one thread's KV heads, in blocks (PagedAttention: Kwon et al., 2023): a sequence that grows
 * copies nothing, and blocks of those that ended are used again. A block of a layer is
 * [heads][kvBlockTokens][headDim] keys, then as many values, f32.
 */
export class KvCache {
  readonly #kernel: AttentionKernel
  readonly #layers: readonly CachedLayer[]
  /** slot → layer → addresses of its blocks. */
  readonly #slots = new Map<number, number[][]>()
  /** Bytes of a block → addresses of free ones. */
  readonly #free = new Map<number, number[]>()

  constructor(kernel: AttentionKernel, layers: readonly CachedLayer[]) {
    this.#kernel = kernel
    this.#layers = layers
  }

  /** The blocks of a sequence in a layer, with room for at least `tokens`. */
  reserve(slot: number, layer: number, tokens: number): readonly number[] {
    let layers = this.#slots.get(slot)
    if (layers === undefined) {
      layers = this.#layers.map(() => [])
      this.#slots.set(slot, layers)
    }
    const blocks = layers[layer]
    assert(blocks !== undefined)
    while (blocks.length * kvBlockTokens < tokens) blocks.push(this.#take(this.#blockBytes(layer)))
    return blocks
  }

  /** `to` gets a copy of what `from` has: candidates of one prompt. */
  copy(from: number, to: number): void {
    this.free(to)
    const layers = this.#slots.get(from)
    if (layers === undefined) return
    const copies = layers.map((): number[] => [])
    // Whatever happens on the way, `free` finds what was taken.
    this.#slots.set(to, copies)
    for (const [layer, blocks] of layers.entries()) {
      const bytes = this.#blockBytes(layer)
      for (const block of blocks) {
        const copy = this.#take(bytes)
        copies[layer]?.push(copy)
        this.#kernel.floats.copyWithin(copy / 4, block / 4, (block + bytes) / 4)
      }
    }
  }

  free(slot: number): void {
    const layers = this.#slots.get(slot) ?? []
    for (const [layer, blocks] of layers.entries()) {
      const bytes = this.#blockBytes(layer)
      const free = this.#free.get(bytes) ?? []
      free.push(...blocks)
      this.#free.set(bytes, free)
    }
    this.#slots.delete(slot)
  }

  #blockBytes(layer: number): number {
    const shape = this.#layers[layer]
    assert(shape !== undefined)
    return 2 * shape.heads * kvBlockTokens * shape.headDim * 4
  }

  #take(bytes: number): number {
    return this.#free.get(bytes)?.pop() ?? this.#kernel.allocate(bytes)
  }
}
