import assert from 'node:assert/strict'

/**
 * Capacities are multiples of this: attention's sums keep their order then, whatever room lies behind. Smaller ones would
 * do for that too, but growing copies what is there, and larger ones make every step read more room.
 */
export const kvBlockTokens = 32

export function kvCapacity(tokens: number): number {
  return Math.ceil(tokens / kvBlockTokens) * kvBlockTokens
}

/** Freed arrays that one thread keeps to use again: growing sequences take them block by block. */
const keptBytesMax = 16 << 20

/** Keys and values of one sequence in one layer, for the KV heads of one thread: [heads, capacity, headDim] each. */
export type LayerCache = { k: Float32Array; v: Float32Array; capacity: number }

/**
 * The keys and values that one thread holds. Graphs read them in place, so a sequence's capacity is exactly what its
 * attention spans; it grows a block at a time by being laid out anew. Freed arrays are used again.
 */
export class KvCache {
  readonly #layers: readonly { heads: number; headDim: number }[]
  readonly #slots = new Map<number, LayerCache[]>()
  readonly #free = new Map<number, Float32Array[]>()
  #keptBytes = 0

  constructor(layers: readonly { heads: number; headDim: number }[]) {
    this.#layers = layers
  }

  /** Room for at least `tokens`. */
  grow(slot: number, layer: number, tokens: number): LayerCache {
    const shape = this.#layers[layer]
    assert(shape !== undefined)
    let caches = this.#slots.get(slot)
    if (caches === undefined) {
      caches = this.#layers.map(() => ({ k: new Float32Array(0), v: new Float32Array(0), capacity: 0 }))
      this.#slots.set(slot, caches)
    }
    const cache = caches[layer]
    assert(cache !== undefined)
    const capacity = kvCapacity(tokens)
    if (capacity > cache.capacity) {
      cache.k = this.#laidOut(cache.k, cache.capacity, capacity, shape)
      cache.v = this.#laidOut(cache.v, cache.capacity, capacity, shape)
      cache.capacity = capacity
    }
    return cache
  }

  /** `to` gets a copy of what `from` has: candidates of one prompt. */
  copy(from: number, to: number): void {
    this.free(to)
    const caches = this.#slots.get(from)
    if (caches === undefined) return
    this.#slots.set(
      to,
      caches.map(({ k, v, capacity }) => ({ k: this.#filled(k), v: this.#filled(v), capacity })),
    )
  }

  free(slot: number): void {
    for (const { k, v } of this.#slots.get(slot) ?? []) {
      this.#release(k)
      this.#release(v)
    }
    this.#slots.delete(slot)
  }

  #laidOut(old: Float32Array, from: number, to: number, shape: { heads: number; headDim: number }): Float32Array {
    const grown = this.#take(shape.heads * to * shape.headDim)
    for (let head = 0; head < shape.heads; head++) {
      const start = head * from * shape.headDim
      grown.set(old.subarray(start, start + from * shape.headDim), head * to * shape.headDim)
      // What lies behind is masked, but must be finite: 0 times infinity would not be 0.
      grown.fill(0, (head * to + from) * shape.headDim, (head + 1) * to * shape.headDim)
    }
    this.#release(old)
    return grown
  }

  #filled(from: Float32Array): Float32Array {
    const copy = this.#take(from.length)
    copy.set(from)
    return copy
  }

  #take(length: number): Float32Array {
    const kept = this.#free.get(length)?.pop()
    if (kept === undefined) return new Float32Array(length)
    this.#keptBytes -= kept.byteLength
    return kept
  }

  #release(array: Float32Array): void {
    if (array.length === 0 || this.#keptBytes + array.byteLength > keptBytesMax) return
    const kept = this.#free.get(array.length) ?? []
    kept.push(array)
    this.#keptBytes += array.byteLength
    this.#free.set(array.length, kept)
  }
}
