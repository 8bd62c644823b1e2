import assert from 'node:assert/strict'
import { attentionGraph } from '../../graph/layers.ts'
import type { AttentionSpec, RopeSpec } from '../../model/spec.ts'
import { createSession, type Session, type SessionOptions } from '../../runtime/session.ts'
import { isEmpty, type Range } from './cut.ts'
import { type KvCache, kvBlockTokens, kvCapacity, type LayerCache } from './kv-cache.ts'
import { RopeTable } from './rope.ts'

/** Hides a key; finite, so that a row of nothing but hidden keys stays finite too. */
const hidden = -1e30

/** Query rows of one run, before the heads of a group are stacked. */
const tileRows = 64

/** Rows of one sequence in a step: positions start … start+count-1, lying in rows row … of the step. */
export type Item = { slot: number; start: number; count: number; row: number }

/** What a thread computes of a layer's attention, with the weights that are not in a graph. */
export type AttentionPart = {
  spec: AttentionSpec
  kvHeads: Range
  /** [headDim] or, for `full`, [heads * headDim] and [kvHeads * headDim]; null without a norm. */
  qNorm: Float32Array | null
  kNorm: Float32Array | null
  normEps: number
  rope: RopeTable
  session: Session
}

/** The columns of a thread's fused projection, per row: its query heads, its key heads, its value heads. */
export function projectionWidth({ spec, kvHeads }: Pick<AttentionPart, 'spec' | 'kvHeads'>): number {
  const group = spec.heads / spec.kvHeads
  return (kvHeads.to - kvHeads.from) * (group + 2) * spec.headDim
}

/**
 * Attention over the KV cache of one thread. The query heads of a KV head are stacked as rows, so that grouped heads
 * share one product; queries go in tiles of rows whose keys end with the tile.
 */
export class Attention {
  readonly #options: SessionOptions
  readonly #cache: KvCache
  readonly #sessions = new Map<number, Session>()
  readonly #ropes = new Map<string, RopeTable>()
  readonly #masks = new Map<string, Float32Array>()
  #q = new Float32Array(0)
  /** Zeros, then a block of hidden: a view of it is the mask of one row. */
  #rowMask = new Float32Array(0)
  #rowMaskZeros = 0

  constructor(options: SessionOptions, cache: KvCache) {
    this.#options = options
    this.#cache = cache
  }

  /** Layers with equal rotations share a table, those with an equal scale a session. */
  part(weights: Omit<AttentionPart, 'rope' | 'session'>): AttentionPart {
    const { rope, scale } = weights.spec
    return { ...weights, rope: this.#rope(rope), session: this.#session(scale) }
  }

  /** Masks are the same in all layers of a step; forget those of the last. */
  beginStep(): void {
    this.#masks.clear()
  }

  /**
   * Norms, clips and turns the queries and keys of `qkv` [rows, projectionWidth], appends keys and values to the cache
   * and writes the attention of the thread's heads into `out` [rows, heads * headDim].
   * `squares` [rows, heads + kvHeads]: sums of squares per head, complete for all heads, where the norm is `full`.
   */
  run(
    part: AttentionPart,
    layer: number,
    qkv: Float32Array,
    items: readonly Item[],
    squares: Float64Array,
    out: Float32Array,
  ): void {
    if (isEmpty(part.kvHeads)) return
    for (const item of items) {
      part.rope.reserve(item.start + item.count)
      let done = 0
      while (done < item.count) {
        const start = item.start + done
        // Tiles end at multiples of their size, so that a whole prompt and its chunks share masks where they can.
        const count = Math.min(item.count - done, tileRows - (start % tileRows))
        const cache = this.#cache.grow(item.slot, layer, start + count)
        this.#appendKeys(part, cache, qkv, squares, item.row + done, start, count)
        this.#tile(part, cache, qkv, squares, item.row + done, start, count, out)
        done += count
      }
    }
  }

  #appendKeys(
    part: AttentionPart,
    cache: LayerCache,
    qkv: Float32Array,
    squares: Float64Array,
    row: number,
    start: number,
    count: number,
  ): void {
    const { spec, kvHeads } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const width = projectionWidth(part)
    const keysAt = (spec.heads / spec.kvHeads) * heads * headDim
    const valuesAt = keysAt + heads * headDim
    for (let i = 0; i < count; i++) {
      const position = start + i
      for (let head = 0; head < heads; head++) {
        const key = (row + i) * width + keysAt + head * headDim
        const to = (head * cache.capacity + position) * headDim
        normHead(part, 'key', kvHeads.from + head, qkv, key, squares, row + i)
        clip(spec, qkv, key, headDim)
        part.rope.rotate(qkv, key, cache.k, to, position)
        const value = (row + i) * width + valuesAt + head * headDim
        clip(spec, qkv, value, headDim)
        for (let d = 0; d < headDim; d++) cache.v[to + d] = qkv[value + d] ?? 0
      }
    }
  }

  #tile(
    part: AttentionPart,
    cache: LayerCache,
    qkv: Float32Array,
    squares: Float64Array,
    row: number,
    start: number,
    count: number,
    out: Float32Array,
  ): void {
    const { spec, kvHeads } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const group = spec.heads / spec.kvHeads
    const width = projectionWidth(part)
    // A single row would take another kernel, with other bits: it goes twice.
    const rows = Math.max(2, count * group)
    const size = heads * rows * headDim
    if (this.#q.length < size) this.#q = new Float32Array(size)
    const q = this.#q
    for (let i = 0; i < count; i++) {
      for (let head = 0; head < heads; head++) {
        for (let member = 0; member < group; member++) {
          const from = (row + i) * width + (head * group + member) * headDim
          const to = (head * rows + i * group + member) * headDim
          const queryHead = (kvHeads.from + head) * group + member
          normHead(part, 'query', queryHead, qkv, from, squares, row + i)
          clip(spec, qkv, from, headDim)
          part.rope.rotate(qkv, from, q, to, start + i)
          if (count * group === 1) q.copyWithin(to + headDim, to, to + headDim)
        }
      }
    }
    const mask = this.#mask(spec.window, group, start, count, cache.capacity)
    const { y } = part.session.run({
      q: { dims: [heads, rows, headDim], type: 'float32', data: q.subarray(0, size), location: 'cpu' },
      k: { dims: [heads, cache.capacity, headDim], type: 'float32', data: cache.k, location: 'cpu' },
      v: { dims: [heads, cache.capacity, headDim], type: 'float32', data: cache.v, location: 'cpu' },
      mask: {
        dims: [mask.length / cache.capacity, cache.capacity],
        type: 'float32',
        data: mask,
        location: 'cpu',
      },
    })
    const result = y?.data
    assert(result instanceof Float32Array)
    const outWidth = spec.heads * headDim
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < count; i++) {
        const from = (head * rows + i * group) * headDim
        const to = (row + i) * outWidth + (kvHeads.from + head) * group * headDim
        out.set(result.subarray(from, from + group * headDim), to)
      }
    }
  }

  /** [rows, capacity], or [1, capacity] for a single position: 0 where a key may be seen. */
  #mask(window: number | null, group: number, start: number, count: number, capacity: number): Float32Array {
    if (count === 1 && window === null) return this.#singleRowMask(start, capacity)
    const key = `${window}/${group}/${start}/${count}/${capacity}`
    const known = this.#masks.get(key)
    if (known) return known
    const rows = count === 1 ? 1 : count * group
    const mask = new Float32Array(rows * capacity).fill(hidden)
    for (let row = 0; row < rows; row++) {
      const position = start + (count === 1 ? 0 : Math.floor(row / group))
      const first = window === null ? 0 : Math.max(0, position - window + 1)
      mask.fill(0, row * capacity + first, row * capacity + position + 1)
    }
    this.#masks.set(key, mask)
    return mask
  }

  #singleRowMask(position: number, capacity: number): Float32Array {
    if (this.#rowMaskZeros < position + 1) {
      this.#rowMaskZeros = 2 * kvCapacity(position + 1)
      this.#rowMask = new Float32Array(this.#rowMaskZeros + kvBlockTokens).fill(hidden, this.#rowMaskZeros)
    }
    const from = this.#rowMaskZeros - (position + 1)
    return this.#rowMask.subarray(from, from + capacity)
  }

  #session(scale: number): Session {
    const known = this.#sessions.get(scale)
    if (known) return known
    const session = createSession(attentionGraph(scale), this.#options)
    this.#sessions.set(scale, session)
    return session
  }

  #rope(rope: RopeSpec): RopeTable {
    const key = `${rope.attentionFactor}/${rope.inverseFrequencies.join()}`
    let table = this.#ropes.get(key)
    if (!table) {
      table = new RopeTable(rope)
      this.#ropes.set(key, table)
    }
    return table
  }

  close(): void {
    for (const session of this.#sessions.values()) session.dispose()
  }
}

/** Sums of squares of the thread's query and key heads into `squares` [rows, heads + kvHeads]. */
export function sumSquares(part: AttentionPart, qkv: Float32Array, rows: number, squares: Float64Array): void {
  const { spec, kvHeads } = part
  const { headDim } = spec
  const heads = kvHeads.to - kvHeads.from
  const group = spec.heads / spec.kvHeads
  const width = projectionWidth(part)
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads * (group + 1); head++) {
      const from = row * width + head * headDim
      let sum = 0
      for (let d = 0; d < headDim; d++) sum += (qkv[from + d] ?? 0) ** 2
      const place =
        head < heads * group ? kvHeads.from * group + head : spec.heads + kvHeads.from + head - heads * group
      squares[row * (spec.heads + spec.kvHeads) + place] = sum
    }
  }
}

/**
 * RMS norm of one head in place: over the head alone, or, for `full`, with the mean over all heads of its kind. The sum
 * goes head by head in one order, so it does not depend on which thread has which heads.
 */
function normHead(
  { spec, normEps, qNorm, kNorm }: AttentionPart,
  kind: 'query' | 'key',
  head: number,
  qkv: Float32Array,
  at: number,
  squares: Float64Array,
  row: number,
): void {
  const weight = kind === 'query' ? qNorm : kNorm
  if (weight === null) return
  const { headDim } = spec
  let sum = 0
  let weightAt = 0
  let count = headDim
  if (spec.qkNorm === 'full') {
    // Query heads come first in a row of sums, key heads behind them.
    const heads = kind === 'query' ? spec.heads : spec.kvHeads
    const first = row * (spec.heads + spec.kvHeads) + (kind === 'query' ? 0 : spec.heads)
    for (let i = 0; i < heads; i++) sum += squares[first + i] ?? 0
    weightAt = head * headDim
    count = heads * headDim
  } else {
    for (let d = 0; d < headDim; d++) sum += (qkv[at + d] ?? 0) ** 2
  }
  const inverse = 1 / Math.sqrt(sum / count + normEps)
  for (let d = 0; d < headDim; d++) {
    qkv[at + d] = Math.fround((qkv[at + d] ?? 0) * inverse) * (weight[weightAt + d] ?? 0)
  }
}

function clip({ clip: limit }: AttentionSpec, values: Float32Array, at: number, count: number): void {
  if (limit === null) return
  for (let i = at; i < at + count; i++) values[i] = Math.max(-limit, Math.min(limit, values[i] ?? 0))
}
