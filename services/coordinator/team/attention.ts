import type { AttentionSpec, RopeSpec } from '../../model/spec.ts'
import type { AttentionKernel, Span } from './attention-kernel.ts'
import { isEmpty, type Range } from './cut.ts'
import { type KvCache, kvBlockTokens } from './kv-cache.ts'
import { RopeTable } from './rope.ts'

/** Positions of one call of the kernel. */
const tileRows = 64
/** Rows that the kernel scores at once, and what else it asks of its scratch. */
const scoredRows = 8
const scratchHeader = 64

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
}

/** The columns of a thread's fused projection, per row: its query heads, its key heads, its value heads. */
export function projectionWidth({ spec, kvHeads }: Pick<AttentionPart, 'spec' | 'kvHeads'>): number {
  const group = spec.heads / spec.kvHeads
  return (kvHeads.to - kvHeads.from) * (group + 2) * spec.headDim
}

/**
 * Attention over the KV cache of one thread. The query heads of a KV head are stacked as rows, which share its keys and
 * values.
 */
export class Attention {
  readonly #kernel: AttentionKernel
  readonly #cache: KvCache
  readonly #ropes = new Map<string, RopeTable>()
  // In the kernel's memory: queries and outputs [heads][rows][headDim], what each row sees, where blocks lie, scores.
  readonly #q: Span = { at: 0, bytes: 0 }
  readonly #out: Span = { at: 0, bytes: 0 }
  readonly #firsts: Span = { at: 0, bytes: 0 }
  readonly #ends: Span = { at: 0, bytes: 0 }
  readonly #blocks: Span = { at: 0, bytes: 0 }
  readonly #scratch: Span = { at: 0, bytes: 0 }

  constructor(kernel: AttentionKernel, cache: KvCache) {
    this.#kernel = kernel
    this.#cache = cache
  }

  /** Layers with equal rotations share a table. */
  part(weights: Omit<AttentionPart, 'rope'>): AttentionPart {
    return { ...weights, rope: this.#rope(weights.spec.rope) }
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
    for (const { slot, start, count, row } of items) {
      const blocks = this.#cache.reserve(slot, layer, start + count)
      part.rope.reserve(start + count)
      this.#appendKeys(part, blocks, qkv, squares, row, start, count)
      for (let done = 0; done < count; done += tileRows) {
        this.#tile(part, blocks, qkv, squares, row + done, start + done, Math.min(tileRows, count - done), out)
      }
    }
  }

  #appendKeys(
    part: AttentionPart,
    blocks: readonly number[],
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
    const { floats } = this.#kernel
    for (let i = 0; i < count; i++) {
      const position = start + i
      const block = (blocks[Math.floor(position / kvBlockTokens)] ?? 0) / 4
      for (let head = 0; head < heads; head++) {
        const key = (row + i) * width + keysAt + head * headDim
        const to = block + (head * kvBlockTokens + (position % kvBlockTokens)) * headDim
        normHead(part, 'key', kvHeads.from + head, qkv, key, squares, row + i)
        clip(spec, qkv, key, headDim)
        part.rope.rotate(qkv, key, floats, to, position)
        const value = (row + i) * width + valuesAt + head * headDim
        clip(spec, qkv, value, headDim)
        floats.set(qkv.subarray(value, value + headDim), to + heads * kvBlockTokens * headDim)
      }
    }
  }

  #tile(
    part: AttentionPart,
    blocks: readonly number[],
    qkv: Float32Array,
    squares: Float64Array,
    row: number,
    start: number,
    count: number,
    out: Float32Array,
  ): void {
    const kernel = this.#kernel
    const { spec, kvHeads } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const group = spec.heads / spec.kvHeads
    const width = projectionWidth(part)
    const rows = count * group
    const q = kernel.reserve(this.#q, heads * rows * headDim * 4)
    const y = kernel.reserve(this.#out, heads * rows * headDim * 4)
    this.#setVisible(spec.window, group, start, count)
    const table = this.#setBlocks(blocks, start + count)
    const capacity = Math.ceil((start + count) / kvBlockTokens) * kvBlockTokens
    const scratch = kernel.reserve(this.#scratch, scratchHeader + scoredRows * capacity * 4)

    const { floats } = kernel
    for (let i = 0; i < count; i++) {
      for (let head = 0; head < heads; head++) {
        for (let member = 0; member < group; member++) {
          const from = (row + i) * width + (head * group + member) * headDim
          const to = q / 4 + (head * rows + i * group + member) * headDim
          const queryHead = (kvHeads.from + head) * group + member
          normHead(part, 'query', queryHead, qkv, from, squares, row + i)
          clip(spec, qkv, from, headDim)
          part.rope.rotate(qkv, from, floats, to, start + i)
        }
      }
    }
    kernel.attend(q, y, rows, this.#firsts.at, this.#ends.at, table, heads, headDim, spec.scale, scratch)
    const outWidth = spec.heads * headDim
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < count; i++) {
        const from = y / 4 + (head * rows + i * group) * headDim
        out.set(
          floats.subarray(from, from + group * headDim),
          (row + i) * outWidth + (kvHeads.from + head) * group * headDim,
        )
      }
    }
  }

  /** Each row sees the keys up to its own, or the last `window` of them. */
  #setVisible(window: number | null, group: number, start: number, count: number): void {
    const kernel = this.#kernel
    const firsts = kernel.reserve(this.#firsts, count * group * 4) / 4
    const ends = kernel.reserve(this.#ends, count * group * 4) / 4
    const { ints } = kernel
    for (let row = 0; row < count * group; row++) {
      const end = start + Math.floor(row / group) + 1
      ints[firsts + row] = window === null ? 0 : Math.max(0, end - window)
      ints[ends + row] = end
    }
  }

  #setBlocks(blocks: readonly number[], tokens: number): number {
    const count = Math.ceil(tokens / kvBlockTokens)
    const at = this.#kernel.reserve(this.#blocks, count * 4)
    const { ints } = this.#kernel
    for (let index = 0; index < count; index++) ints[at / 4 + index] = blocks[index] ?? 0
    return at
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
