import type { AttentionSpec, RopeSpec } from '../../model/spec.ts'
import { addKernelMs } from '../../runtime/inside.ts'
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
  qNorm: HeadNorm | null
  kNorm: HeadNorm | null
  normEps: number
  rope: RopeTable
}

/** Where a norm's weights for the thread's heads lie, and how many bytes behind a head's those of the next. */
type HeadNorm = { at: number; stride: number }

export type AttentionWeights = Pick<AttentionPart, 'spec' | 'kvHeads' | 'normEps'> & {
  /** [headDim] or, for `full`, [heads * headDim] and [kvHeads * headDim]; null without a norm. */
  qNorm: Float32Array | null
  kNorm: Float32Array | null
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
  readonly #tableWidth: number
  readonly #ropes = new Map<string, RopeTable>()
  // In the kernel's memory: the projection [rows][projectionWidth], queries [heads][rows][headDim], outputs [tokens]
  // [heads][headDim], what each row sees, where blocks lie, scores.
  readonly #qkv = emptySpan()
  readonly #q = emptySpan()
  readonly #out = emptySpan()
  readonly #firsts = emptySpan()
  readonly #ends = emptySpan()
  readonly #blocks = emptySpan()
  readonly #scratch = emptySpan()

  /** `tableWidth`: most blocks of a sequence. */
  constructor(kernel: AttentionKernel, cache: KvCache, tableWidth: number) {
    this.#kernel = kernel
    this.#cache = cache
    this.#tableWidth = tableWidth
  }

  /** Layers with equal rotations share a table. */
  part({ spec, kvHeads, normEps, qNorm, kNorm }: AttentionWeights): AttentionPart {
    const group = spec.heads / spec.kvHeads
    return {
      spec,
      kvHeads,
      normEps,
      qNorm: this.#headNorm(qNorm, spec, kvHeads.from * group, kvHeads.to * group),
      kNorm: this.#headNorm(kNorm, spec, kvHeads.from, kvHeads.to),
      rope: this.#rope(spec.rope),
    }
  }

  /** Makes room for the thread's fused projection of a step of `rows`. */
  reserve(part: AttentionPart, rows: number): void {
    this.#kernel.reserve(this.#qkv, rows * projectionWidth(part) * 4)
  }

  /** Takes over `count` rows of it from `first` on: [count, projectionWidth]. */
  load(part: AttentionPart, qkv: Float32Array, first: number, count: number): void {
    const width = projectionWidth(part)
    const values = qkv.length === count * width ? qkv : qkv.subarray(0, count * width)
    this.#kernel.floats.set(values, this.#qkv.at / 4 + first * width)
  }

  /** Of what was loaded: sums of squares of the thread's query and key heads into `squares` [rows, heads + kvHeads]. */
  sumSquares(part: AttentionPart, rows: number, squares: Float64Array): void {
    const { spec, kvHeads } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const group = spec.heads / spec.kvHeads
    const width = projectionWidth(part)
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < heads * (group + 1); head++) {
        const isQuery = head < heads * group
        const place = isQuery ? kvHeads.from * group + head : spec.heads + kvHeads.from + head - heads * group
        const at = this.#qkv.at + (row * width + head * headDim) * 4
        squares[row * (spec.heads + spec.kvHeads) + place] = this.#kernel.code.sumSquares(at, headDim)
      }
    }
  }

  /**
   * Norms, clips and turns the queries and keys of what was loaded, appends keys and values to the cache and writes the
   * attention of the thread's heads into `out` [rows, heads * headDim].
   * `tables` [slots, most blocks of a sequence]: the numbers of each sequence's blocks. `squares` [rows, heads + kvHeads]: sums of squares per head, complete for all heads, where the norm is `full`.
   */
  run(
    part: AttentionPart,
    layer: number,
    items: readonly Item[],
    tables: Int32Array,
    squares: Float64Array,
    out: Float32Array,
  ): void {
    if (isEmpty(part.kvHeads)) return
    for (const { slot, start, count, row } of items) {
      this.#findBlocks(layer, tables, slot, start + count)
      part.rope.reserve(start + count)
      this.#append(part, squares, row, start, count)
      for (let done = 0; done < count; done += tileRows) {
        this.#tile(part, squares, row + done, start + done, Math.min(tileRows, count - done), out)
      }
    }
  }

  /** Keys and values of `count` positions into their blocks. */
  #append(part: AttentionPart, squares: Float64Array, row: number, start: number, count: number): void {
    const { spec, kvHeads, kNorm, normEps, rope } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const width = projectionWidth(part)
    const { code } = this.#kernel
    const limit = spec.clip ?? Number.POSITIVE_INFINITY
    const stride = kvBlockTokens * headDim * 4
    for (let i = 0; i < count; i++) {
      const position = start + i
      const block = this.#blocks.at / 4 + Math.floor(position / kvBlockTokens)
      const to = (this.#kernel.ints[block] ?? 0) + (position % kvBlockTokens) * headDim * 4
      const keys = this.#qkv.at + ((row + i) * width + (spec.heads / spec.kvHeads) * heads * headDim) * 4
      const values = keys + heads * headDim * 4
      const inverse = fullInverse(part, 'key', squares, row + i)
      const { at = 0, stride: step = 0 } = kNorm ?? {}
      const [cos, sin] = [rope.cosAt(position), rope.sinAt(position)]
      code.turn(keys, to, stride, heads, headDim, at, step, inverse, normEps, limit, cos, sin)
      code.place(values, to + heads * stride, stride, heads, headDim, limit)
    }
  }

  #tile(
    part: AttentionPart,
    squares: Float64Array,
    row: number,
    start: number,
    count: number,
    out: Float32Array,
  ): void {
    const kernel = this.#kernel
    const { code } = kernel
    const { spec, kvHeads, qNorm, normEps, rope } = part
    const { headDim } = spec
    const heads = kvHeads.to - kvHeads.from
    const group = spec.heads / spec.kvHeads
    const width = projectionWidth(part)
    const rows = count * group
    const rowBytes = headDim * 4
    const q = kernel.reserve(this.#q, heads * rows * rowBytes)
    const y = kernel.reserve(this.#out, heads * rows * rowBytes)
    this.#setVisible(spec.window, group, start, count)
    const capacity = Math.ceil((start + count) / kvBlockTokens) * kvBlockTokens
    const scratch = kernel.reserve(this.#scratch, scratchHeader + scoredRows * capacity * 4)
    const limit = spec.clip ?? Number.POSITIVE_INFINITY
    for (let i = 0; i < count; i++) {
      const [cos, sin] = [rope.cosAt(start + i), rope.sinAt(start + i)]
      const inverse = fullInverse(part, 'query', squares, row + i)
      for (let head = 0; head < heads; head++) {
        const from = this.#qkv.at + ((row + i) * width + head * group * headDim) * 4
        const to = q + (head * rows + i * group) * rowBytes
        const { at, stride } = qNorm ?? { at: 0, stride: 0 }
        const weights = at + head * group * stride
        code.turn(from, to, rowBytes, group, headDim, weights, stride, inverse, normEps, limit, cos, sin)
      }
    }
    const startedMs = performance.now()
    code.attend(q, y, rows, group, this.#firsts.at, this.#ends.at, this.#blocks.at, heads, headDim, spec.scale, scratch)
    addKernelMs(performance.now() - startedMs)
    const ownWidth = heads * group * headDim
    for (let i = 0; i < count; i++) {
      const from = y / 4 + i * ownWidth
      const to = (row + i) * spec.heads * headDim + kvHeads.from * group * headDim
      out.set(kernel.floats.subarray(from, from + ownWidth), to)
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

  /** Where the layer's pieces of a sequence's first `tokens` lie. */
  #findBlocks(layer: number, tables: Int32Array, slot: number, tokens: number): void {
    const count = Math.ceil(tokens / kvBlockTokens)
    const from = slot * this.#tableWidth
    const at = this.#kernel.reserve(this.#blocks, count * 4) / 4
    for (let index = 0; index < count; index++) {
      // First: it may move the memory that it is written to.
      const address = this.#cache.at(tables[from + index] ?? 0, layer)
      this.#kernel.ints[at + index] = address
    }
  }

  /** The weights of heads from … to-1 in the kernel's memory. */
  #headNorm(weights: Float32Array | null, spec: AttentionSpec, from: number, to: number): HeadNorm | null {
    if (weights === null || from >= to) return null
    const own = spec.qkNorm === 'full' ? weights.subarray(from * spec.headDim, to * spec.headDim) : weights
    const at = this.#kernel.allocate(own.byteLength)
    this.#kernel.floats.set(own, at / 4)
    return { at, stride: spec.qkNorm === 'full' ? spec.headDim * 4 : 0 }
  }

  #rope(rope: RopeSpec): RopeTable {
    const key = `${rope.attentionFactor}/${rope.inverseFrequencies.join()}`
    let table = this.#ropes.get(key)
    if (!table) {
      table = new RopeTable(this.#kernel, rope)
      this.#ropes.set(key, table)
    }
    return table
  }
}

function emptySpan(): Span {
  return { at: 0, bytes: 0 }
}

/**
 * 1 over the root mean square of all heads of a kind, for norms over all of them; 0 for those of one head. The sum goes
 * head by head in one order, so it does not depend on which thread has which heads.
 */
function fullInverse(
  { spec, normEps }: AttentionPart,
  kind: 'query' | 'key',
  squares: Float64Array,
  row: number,
): number {
  if (spec.qkNorm !== 'full') return 0
  // Query heads come first in a row of sums, key heads behind them.
  const heads = kind === 'query' ? spec.heads : spec.kvHeads
  const first = row * (spec.heads + spec.kvHeads) + (kind === 'query' ? 0 : spec.heads)
  let sum = 0
  for (let i = 0; i < heads; i++) sum += squares[first + i] ?? 0
  return 1 / Math.sqrt(sum / (heads * spec.headDim) + normEps)
}
