import assert from 'node:assert/strict'
import { rowMultiple } from '../../graph/linear.ts'
import type { MoeFfnSpec } from '../../model/spec.ts'
import { kernelMs } from '../../runtime/inside.ts'
import { release, type Session } from '../../runtime/session.ts'
import type { Barrier } from '../../runtime/signal.ts'
import { Attention, type Item } from './attention.ts'
import { AttentionKernel } from './attention-kernel.ts'
import { cut, cutColumns, type Range } from './cut.ts'
import { Embedding, type EmbeddingSource } from './embedding.ts'
import { KvCache } from './kv-cache.ts'
import { buildLayer, type Columns, columns, type LayerPart, type ShareSetup } from './layer-sessions.ts'
import { type Phase, phases, type StepBuffers } from './layout.ts'
import type { OwnExperts } from './own-experts.ts'
import { chooseExperts } from './router.ts'
import { Stretches } from './stretches.ts'

/** A long prompt's rows are projected a piece at a time, which bounds the intermediate values of every thread. */
const projectedRowsMax = 256

/**
 * One thread's share of a coordinator's forward pass. Linear layers are cut by output columns and attention by KV
 * heads; a share may be empty. Threads meet at a barrier wherever the next operation needs whole rows. The order of the
 * methods is the way of a row through a layer.
 */

export type ForwardSetup = ShareSetup & {
  embedding: EmbeddingSource
  buffers: StepBuffers
  /** KV blocks of the longest sequence. */
  sequenceBlocks: number
  barrier: Barrier
  /** Null where experts are computed elsewhere. */
  experts: OwnExperts | null
}

export class Forward {
  readonly cache: KvCache
  readonly #setup: ForwardSetup
  readonly #attention: Attention
  readonly #embedding: Embedding
  readonly #layers: LayerPart[]
  readonly #head: Columns | null
  readonly #headRows: Float32Array
  readonly #scores: Float64Array
  readonly #stretches: Stretches
  #clockMs = 0
  #runtimeMs = kernelMs()

  constructor(setup: ForwardSetup) {
    this.#setup = setup
    const { spec, thread, threads } = setup
    this.#stretches = new Stretches(setup.buffers, thread)
    const heads = spec.layers.map(({ attention }) => cut(attention.kvHeads, threads, thread))
    const kernel = new AttentionKernel()
    this.cache = new KvCache(
      kernel,
      spec.layers.map(({ attention }, layer) => ({
        heads: (heads[layer]?.to ?? 0) - (heads[layer]?.from ?? 0),
        firstHead: heads[layer]?.from ?? 0,
        allHeads: attention.kvHeads,
        headDim: attention.headDim,
      })),
    )
    this.#attention = new Attention(kernel, this.cache, setup.sequenceBlocks)
    this.#embedding = new Embedding(setup.embedding, spec.hidden)
    if (setup.thread === 0) this.#embedding.warm(spec.vocabulary)
    this.#layers = spec.layers.map((layer, index) =>
      buildLayer(setup, this.#attention, layer, index, heads[index] ?? { from: 0, to: 0 }),
    )
    this.#head = columns(setup, 'head', spec.hidden, spec.vocabulary, 'final_norm')
    this.#headRows = new Float32Array((setup.buffers.logits.length / spec.vocabulary + 1) * spec.hidden)
    const experts = spec.layers.map(({ ffn }) => (ffn.kind === 'moe' ? ffn.experts : 0))
    this.#scores = new Float64Array(2 * Math.max(...experts))
  }

  /** A command begins: all threads have ended the one before. */
  begin(): void {
    this.#clockMs = performance.now()
    this.#stretches.begin()
  }

  end(): void {
    this.#stretches.end()
  }

  /**
   * Runs from layer `from` on (0: from the tokens) until routed experts are needed that are not here, or, with `pauses`,
   * until the next layer's experts have computed. Returns that layer, its routing in the shared buffers, or the number
   * of layers. If `from` > 0, layer from-1's experts have answered.
   */
  run(from: number, rows: number, items: readonly Item[], pauses: boolean): number {
    if (from === 0) {
      this.#embed(rows)
    } else this.#combine(from - 1, rows)
    for (let layer = from; layer < this.#layers.length; layer++) {
      const part = this.#layers[layer]
      assert(part !== undefined)
      this.#attend(part, layer, rows, items)
      if (part.ffn.kind === 'moe') {
        this.#route(part.ffn.spec, part.ffn.router, rows)
        if (this.#setup.experts === null) return layer
        this.#computeExperts(this.#setup.experts, layer, rows, part.ffn.spec.expertsPerToken)
        if (pauses) return layer
        this.#combine(layer, rows)
      } else this.#dense(part.ffn, rows)
    }
    return this.#layers.length
  }

  #embed(rows: number): void {
    const { spec, thread, threads, buffers } = this.#setup
    const { from, to } = cut(rows, threads, thread)
    for (let row = from; row < to; row++) {
      this.#embedding.read(buffers.tokens[row] ?? 0, buffers.x, row * spec.hidden)
    }
    this.#lap('embed')
    this.#meet()
  }

  /** x += weight * output for each of a row's experts, in ascending expert id: the order is part of the bits. */
  #combine(layer: number, rows: number): void {
    const { spec, thread, threads, buffers } = this.#setup
    const ffn = spec.layers[layer]?.ffn
    assert(ffn?.kind === 'moe')
    const { from, to } = cutColumns(spec.hidden, threads, thread)
    addWeighted(buffers, spec.hidden, ffn.expertsPerToken, rows, from, to)
    this.#lap('combine')
    this.#meet()
  }

  #attend(part: LayerPart, layer: number, rows: number, items: readonly Item[]): void {
    const { buffers, spec } = this.#setup
    const { attention } = part
    if (part.qkv !== null) {
      this.#attention.reserve(attention, rows)
      this.#project(part.qkv, buffers.x, spec.hidden, rows, (y, first, count) =>
        this.#attention.load(attention, y, first, count),
      )
    }
    this.#lap('qkv')
    if (attention.spec.qkNorm === 'full') {
      if (part.qkv !== null) this.#attention.sumSquares(attention, rows, buffers.squares)
      this.#meet()
    }
    this.#attention.run(attention, layer, items, buffers.blocks, buffers.squares, buffers.attention)
    this.#lap('attention')
    this.#meet()
    const queries = attention.spec.heads * attention.spec.headDim
    this.#addProjection(part.output, buffers.attention, queries, rows)
    this.#lap('output')
    this.#meet()
  }

  /** Rows are divided over the threads; a single row goes to the first. */
  #route(ffn: MoeFfnSpec, router: Session | null, rows: number): void {
    const { spec, thread, threads, buffers } = this.#setup
    const { hidden } = spec
    const { from, to } = cut(rows, rows < threads ? 1 : threads, thread)
    if (router !== null && from < to) {
      const fetched = router.run({
        x: {
          dims: [to - from, hidden],
          type: 'float32',
          data: buffers.x.subarray(from * hidden, to * hidden),
          location: 'cpu',
        },
      })
      const logits = fetched.logits?.data
      const encoded = fetched.rows?.data
      assert(logits instanceof Float32Array)
      assert(encoded instanceof Float32Array || encoded instanceof Uint8Array)
      const bytes = new Uint8Array(encoded.buffer, encoded.byteOffset, encoded.byteLength)
      buffers.rows.data.set(bytes, (from * bytes.byteLength) / (to - from))
      const scales = fetched.scales?.data
      if (scales instanceof Float32Array) buffers.rows.scales.set(scales, from)
      for (let row = from; row < to; row++) {
        chooseExperts(
          logits,
          (row - from) * ffn.experts,
          ffn.experts,
          ffn.expertsPerToken,
          ffn.router,
          this.#scores,
          buffers.expertIds,
          buffers.expertWeights,
          row * ffn.expertsPerToken,
        )
      }
      for (const { data } of Object.values(fetched)) release(data)
    }
    this.#lap('router')
  }

  #computeExperts(experts: OwnExperts, layer: number, rows: number, expertsPerToken: number): void {
    this.#meet()
    experts.compute(layer, rows, expertsPerToken)
    this.#lap('expert')
    this.#meet()
  }

  #dense(ffn: LayerPart['ffn'] & { kind: 'dense' }, rows: number): void {
    const { buffers, spec } = this.#setup
    if (ffn.gateUp !== null) {
      const { session, range } = ffn.gateUp
      this.#project(session, buffers.x, spec.hidden, rows, (y, first, count) =>
        putColumns(y, range, buffers.inner, ffn.spec.inner, first, count, false),
      )
    }
    this.#lap('dense')
    this.#meet()
    this.#addProjection(ffn.down, buffers.inner, ffn.spec.inner, rows)
    this.#lap('dense')
    this.#meet()
  }

  /**
   * Logits of the given rows of the step into the shared head slice, this thread's columns of the vocabulary.
   * `rowAt(i)`: the step's row of slice row i.
   */
  head(slice: number, rowAt: (index: number) => number): void {
    const { spec, buffers } = this.#setup
    const { hidden, vocabulary } = spec
    for (let i = 0; i < slice; i++) {
      const row = rowAt(i)
      this.#headRows.set(buffers.x.subarray(row * hidden, (row + 1) * hidden), i * hidden)
    }
    if (this.#head !== null) {
      const { session, range } = this.#head
      this.#project(session, this.#headRows, hidden, slice, (y, first, count) =>
        putColumns(y, range, buffers.logits, vocabulary, first, count, false),
      )
    }
    this.#lap('head')
    this.#meet()
  }

  /** What came since the head was sampling. */
  lapSampling(): void {
    this.#lap('sampling')
  }

  close(): void {
    this.#embedding.close()
    this.#setup.experts?.close()
    for (const { qkv, output, ffn } of this.#layers) {
      qkv?.dispose()
      output?.session.dispose()
      if (ffn.kind === 'moe') ffn.router?.dispose()
      else {
        ffn.gateUp?.session.dispose()
        ffn.down?.session.dispose()
      }
    }
    this.#head?.session.dispose()
  }

  /**
   * x [rows, inputs] through a session, a piece of the rows at a time; `use` reads the results [count, outputs] of rows
   * first … first + count - 1. An odd count may need one row more, whose result is dropped.
   */
  #project(
    session: Session,
    x: Float32Array,
    inputs: number,
    rows: number,
    use: (y: Float32Array, first: number, count: number) => void,
  ): void {
    const multiple = rowMultiple(this.#setup.format, inputs)
    for (let first = 0; first < rows; first += projectedRowsMax) {
      const count = Math.min(rows - first, projectedRowsMax)
      const fed = Math.ceil(count / multiple) * multiple
      const data = x.subarray(first * inputs, (first + fed) * inputs)
      const { y } = session.run({ x: { dims: [fed, inputs], type: 'float32', data, location: 'cpu' } })
      assert(y?.data instanceof Float32Array)
      use(y.data, first, count)
      release(y.data)
    }
  }

  /** residual += projection, in this thread's columns. */
  #addProjection(columns: Columns | null, input: Float32Array, inputs: number, rows: number): void {
    if (columns === null) return
    const { hidden } = this.#setup.spec
    const { x } = this.#setup.buffers
    const { session, range } = columns
    this.#project(session, input, inputs, rows, (y, first, count) =>
      putColumns(y, range, x, hidden, first, count, true),
    )
  }

  #meet(): void {
    this.#stretches.end()
    this.#setup.barrier.wait()
    this.#stretches.begin()
    this.#lap('waiting')
  }

  /** The time since the last lap belongs to `phase`. */
  #lap(phase: Phase): void {
    const now = performance.now()
    const inside = kernelMs()
    const { profile, runtime } = this.#setup.buffers
    const place = this.#setup.thread * phases.length + phases.indexOf(phase)
    profile[place] = (profile[place] ?? 0) + now - this.#clockMs
    runtime[place] = (runtime[place] ?? 0) + inside - this.#runtimeMs
    this.#clockMs = now
    this.#runtimeMs = inside
  }
}

/** y [count, columns of `range`] into, or with `adds` onto, rows `first` … of a matrix that is `width` wide. */
function putColumns(
  y: Float32Array,
  range: Range,
  matrix: Float32Array,
  width: number,
  first: number,
  count: number,
  adds: boolean,
): void {
  const columns = range.to - range.from
  for (let row = 0; row < count; row++) {
    const to = (first + row) * width + range.from
    const from = row * columns
    if (adds) for (let i = 0; i < columns; i++) matrix[to + i] = (matrix[to + i] ?? 0) + (y[from + i] ?? 0)
    else matrix.set(y.subarray(from, from + columns), to)
  }
}

/**
 * The hot loop of combine, on plain numbers: columns from … to-1 of every row. Four experts at a time, so that x is
 * read and written once for them; the groups do not depend on anything but the model.
 */
function addWeighted(
  { x, expertWeights, outputRows, outputs }: StepBuffers,
  hidden: number,
  expertsPerToken: number,
  rows: number,
  from: number,
  to: number,
): void {
  const y = outputs.data
  const fours = expertsPerToken - (expertsPerToken % 4)
  for (let row = 0; row < rows; row++) {
    const xAt = row * hidden
    const pairs = row * expertsPerToken
    for (let k = 0; k < fours; k += 4) {
      const w0 = expertWeights[pairs + k] ?? 0
      const w1 = expertWeights[pairs + k + 1] ?? 0
      const w2 = expertWeights[pairs + k + 2] ?? 0
      const w3 = expertWeights[pairs + k + 3] ?? 0
      const y0 = (outputRows[pairs + k] ?? 0) * hidden
      const y1 = (outputRows[pairs + k + 1] ?? 0) * hidden
      const y2 = (outputRows[pairs + k + 2] ?? 0) * hidden
      const y3 = (outputRows[pairs + k + 3] ?? 0) * hidden
      for (let i = from; i < to; i++) {
        const sum = w0 * (y[y0 + i] ?? 0) + w1 * (y[y1 + i] ?? 0) + w2 * (y[y2 + i] ?? 0) + w3 * (y[y3 + i] ?? 0)
        x[xAt + i] = (x[xAt + i] ?? 0) + sum
      }
    }
    for (let k = fours; k < expertsPerToken; k++) {
      const weight = expertWeights[pairs + k] ?? 0
      const yAt = (outputRows[pairs + k] ?? 0) * hidden
      for (let i = from; i < to; i++) x[xAt + i] = (x[xAt + i] ?? 0) + weight * (y[yAt + i] ?? 0)
    }
  }
}
