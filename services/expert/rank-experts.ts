import assert from 'node:assert/strict'
import { MoeshError } from '../config/errors.ts'
import { hasScale, type OutputBuffer, type RowBuffer, rowBytes, rowEncoding } from '../dispatch/rows.ts'
import type { ExpertCall } from '../dispatch/transport.ts'
import type { Weight } from '../graph/graph.ts'
import { type ExpertWeights, expertGraph } from '../graph/layers.ts'
import type { LinearWeights } from '../graph/linear.ts'
import type { WeightFormat } from '../model/format.ts'
import type { ModelSpec } from '../model/spec.ts'
import { type ShardPart, shardLayout } from '../model/tensors.ts'
import { type ProductRows, paddedRows, productRows } from '../runtime/product-rows.ts'
import { createSession, type Feed, release, type Session, type SessionOptions } from '../runtime/session.ts'
import type { ShardSource } from './host.ts'

/** Experts of one layer that share a session. */
type Group = { experts: number[]; sources: ShardSource[]; session: Session; counts: BigInt64Array }

/** As few as a running node takes at once, so that rows do not wait long. */
const remainingMax = 4

/**
 * Rows of one run of a session. A long prompt's rows go in several, which bounds what a run takes beside the weights
 * and keeps its intermediate values in the caches.
 */
const runRowsMax = 256

/** The experts of one computing thread, loaded: rows in, rows out. */
export class RankExperts {
  readonly #spec: ModelSpec
  readonly #format: WeightFormat
  readonly #options: SessionOptions
  readonly #ruleOf: typeof productRows
  readonly #groups = new Map<number, Group[]>()
  /** What remains of groups that an unload will hit, built before it comes. */
  readonly #remains = new Map<Group, Group[]>()
  readonly #gathered: GatheredRows

  constructor(spec: ModelSpec, format: WeightFormat, options: SessionOptions, ruleOf = productRows) {
    this.#spec = spec
    this.#format = format
    this.#options = options
    this.#ruleOf = ruleOf
    this.#gathered = new GatheredRows(format, spec.hidden)
  }

  load(layer: number, shards: readonly ShardSource[]): void {
    const present = this.#groups.get(layer) ?? []
    const held = new Set(present.flatMap((group) => group.experts))
    const wanted = shards.filter(({ expert }) => !held.has(expert))
    if (wanted.length === 0) return
    this.#groups.set(layer, [...present, this.#buildGroup(layer, wanted)])
  }

  /** A group that loses some of its experts is built again from the others before the old one goes: the small steps of it. */
  stepsBeforeUnload(layer: number, experts: readonly number[]): (() => void)[] {
    const gone = new Set(experts)
    const steps: (() => void)[] = []
    for (const group of this.#groups.get(layer) ?? []) {
      const rest = group.sources.filter(({ expert }) => !gone.has(expert))
      if (rest.length === 0 || rest.length === group.sources.length) continue
      const built: Group[] = []
      this.#remains.set(group, built)
      for (let from = 0; from < rest.length; from += remainingMax) {
        steps.push(() => built.push(this.#buildGroup(layer, rest.slice(from, from + remainingMax))))
      }
    }
    return steps
  }

  forgetSteps(): void {
    for (const built of this.#remains.values()) for (const { session } of built) session.dispose()
    this.#remains.clear()
  }

  unload(layer: number, experts: readonly number[]): void {
    const gone = new Set(experts)
    const next: Group[] = []
    for (const group of this.#groups.get(layer) ?? []) {
      const rest = group.sources.filter(({ expert }) => !gone.has(expert))
      if (rest.length === group.sources.length) next.push(group)
      else {
        const built = this.#remains.get(group) ?? []
        const missing = rest.filter(({ expert }) => !built.some((other) => other.experts.includes(expert)))
        next.push(...built)
        if (missing.length > 0) next.push(this.#buildGroup(layer, missing))
        this.#remains.delete(group)
        group.session.dispose()
      }
    }
    this.#groups.set(layer, next)
  }

  /** Computes the rows of the experts that are here, and passes over the others; returns how many rows it computed. */
  compute({ layer, experts, counts, rowIndices, rows, outputs, outputStart }: ExpertCall): number {
    const { hidden } = this.#spec
    const rule = this.#ruleOf(this.#options.provider, this.#format, [hidden, this.#moeLayer(layer).inner])
    let computed = 0
    for (const group of this.#groups.get(layer) ?? []) {
      const run = new GroupRun(group, this.#gathered, rows, outputs, hidden, rule)
      // Where products are small, all members' next rows go together: one round computes up to `max` rows of each.
      for (let done = 0, more = true; more; done += rule.max) {
        more = false
        let index = 0
        let before = 0
        for (const [member, id] of group.experts.entries()) {
          while (index < experts.length && (experts[index] ?? 0) < id) before += counts[index++] ?? 0
          if (index >= experts.length || experts[index] !== id) continue
          const left = (counts[index] ?? 0) - done
          if (left <= 0) continue
          run.add(member, rowIndices, before + done, outputStart + before + done, Math.min(left, rule.max))
          if (left > rule.max) more = true
        }
        run.run()
      }
      computed += run.computed
    }
    return computed
  }

  dispose(): void {
    this.forgetSteps()
    for (const group of [...this.#groups.values()].flat()) group.session.dispose()
  }

  #moeLayer(layer: number) {
    const ffn = this.#spec.layers[layer]?.ffn
    if (ffn?.kind !== 'moe') throw new MoeshError('INTERNAL', `layer ${layer} has no routed experts`)
    return ffn
  }

  #buildGroup(layer: number, sources: readonly ShardSource[]): Group {
    const { hidden } = this.#spec
    const format = this.#format
    const ffn = this.#moeLayer(layer)
    const { parts } = shardLayout(this.#spec, ffn, format)
    const sorted = [...sources].sort((a, b) => a.expert - b.expert)
    const weights = sorted.map(
      (shard): ExpertWeights => ({
        gateUp: expertLinear(format, parts, shard, 'gate_up', hidden, 2 * ffn.inner),
        down: expertLinear(format, parts, shard, 'down', ffn.inner, hidden),
      }),
    )
    const session = createSession(expertGraph(format, hidden, ffn.activation, weights), this.#options)
    return {
      experts: sorted.map(({ expert }) => expert),
      sources: sorted,
      session,
      counts: new BigInt64Array(sorted.length),
    }
  }
}

function expertLinear(
  format: WeightFormat,
  parts: readonly ShardPart[],
  shard: ShardSource,
  name: string,
  inputs: number,
  outputs: number,
): LinearWeights {
  const weights: LinearWeights = { format, inputs, outputs, parts: {} }
  for (const part of parts) {
    const [tensor, component] = part.name.split('.')
    if (tensor !== name) continue
    assert(part.dtype === 'f32' || part.dtype === 'i8' || part.dtype === 'u8')
    const weight: Weight = {
      type: part.dtype,
      shape: part.shape,
      source: { kind: 'file', path: shard.path, offset: shard.offset + part.offset, bytes: part.bytes },
    }
    if (component === 'w') weights.parts.w = weight
    else if (component === 'q') weights.parts.q = weight
    else if (component === 'scale') weights.parts.scale = weight
  }
  return weights
}

/** Rows on their way into a session: [capacity, encoded bytes] and scales [capacity]; grown, never shrunk. */
class GatheredRows {
  readonly #hidden: number
  readonly #isFloat: boolean
  readonly #hasScale: boolean
  readonly #bytes: number
  #capacity = 0
  #data = new Uint8Array(0)
  #floats = new Float32Array(0)
  #scales = new Float32Array(0)

  constructor(format: WeightFormat, hidden: number) {
    const encoding = rowEncoding(format)
    this.#hidden = hidden
    this.#isFloat = encoding === 'f32'
    this.#hasScale = hasScale(encoding)
    this.#bytes = rowBytes(encoding, hidden)
  }

  put(at: number, { data, scales }: RowBuffer, row: number): void {
    this.#data.set(data.subarray(row * this.#bytes, (row + 1) * this.#bytes), at * this.#bytes)
    if (this.#hasScale) this.#scales[at] = scales[row] ?? 0
  }

  reserve(rows: number): void {
    if (rows <= this.#capacity) return
    this.#capacity = Math.max(rows, this.#capacity * 2, 64)
    const bytes = new ArrayBuffer(this.#capacity * this.#bytes)
    const before = this.#data
    const scalesBefore = this.#scales
    this.#data = new Uint8Array(bytes)
    this.#data.set(before)
    this.#floats = this.#isFloat ? new Float32Array(bytes) : new Float32Array(0)
    this.#scales = new Float32Array(this.#hasScale ? this.#capacity : 0)
    this.#scales.set(scalesBefore)
  }

  /** The first `rows`, as an expert graph takes them. */
  feeds(rows: number): Record<string, Feed> {
    const feeds: Record<string, Feed> = {
      rows: this.#isFloat
        ? {
            dims: [rows, this.#hidden],
            type: 'float32',
            data: this.#floats.subarray(0, rows * this.#hidden),
            location: 'cpu',
          }
        : {
            dims: [rows, this.#bytes],
            type: 'uint8',
            data: this.#data.subarray(0, rows * this.#bytes),
            location: 'cpu',
          },
    }
    if (this.#hasScale) {
      feeds.scales = { dims: [rows, 1], type: 'float32', data: this.#scales.subarray(0, rows), location: 'cpu' }
    }
    return feeds
  }
}

/** Outputs `from` … of a run belong to `count` rows of the shared outputs from `to` on. */
type Segment = { from: number; to: number; count: number }

/** Gathers a group's rows, sorted by expert, each expert's count padded, and runs them when asked or when there are enough. */
class GroupRun {
  readonly #group: Group
  readonly #gathered: GatheredRows
  readonly #rows: RowBuffer
  readonly #outputs: OutputBuffer
  readonly #hidden: number
  readonly #rule: ProductRows
  #taken = 0
  computed = 0
  #segments: Segment[] = []

  constructor(
    group: Group,
    gathered: GatheredRows,
    rows: RowBuffer,
    outputs: OutputBuffer,
    hidden: number,
    rule: ProductRows,
  ) {
    this.#group = group
    this.#gathered = gathered
    this.#rows = rows
    this.#outputs = outputs
    this.#hidden = hidden
    this.#rule = rule
    group.counts.fill(0n)
  }

  /** `count` rows of a member, whose indices stand in `rowIndices` from `indicesAt` on. */
  add(member: number, rowIndices: Int32Array, indicesAt: number, outputAt: number, count: number): void {
    for (let done = 0; done < count; ) {
      if (this.#taken >= runRowsMax) this.run()
      const part = Math.min(count - done, runRowsMax - this.#taken)
      this.#gather(member, rowIndices, indicesAt + done, part)
      this.#segments.push({ from: this.#taken - Number(this.#group.counts[member]), to: outputAt + done, count: part })
      done += part
      // An expert's rows are one piece of a run.
      if (done < count) this.run()
    }
  }

  #gather(member: number, rowIndices: Int32Array, indicesAt: number, count: number): void {
    const padded = paddedRows(count, this.#rule)
    this.#gathered.reserve(this.#taken + padded)
    for (let i = 0; i < padded; i++) {
      this.#gathered.put(this.#taken + i, this.#rows, rowIndices[indicesAt + Math.min(i, count - 1)] ?? 0)
    }
    this.#group.counts[member] = BigInt(padded)
    this.#taken += padded
  }

  /** Runs what was gathered. */
  run(): void {
    const taken = this.#taken
    if (taken === 0) return
    const { session, counts } = this.#group
    const y = session.run({
      ...this.#gathered.feeds(taken),
      counts: { dims: [counts.length], type: 'int64', data: counts, location: 'cpu' },
    }).y?.data
    assert(y instanceof Float32Array)
    const hidden = this.#hidden
    for (const { from, to, count } of this.#segments) {
      this.#outputs.data.set(y.subarray(from * hidden, (from + count) * hidden), to * hidden)
      this.computed += count
    }
    release(y)
    this.#segments = []
    this.#taken = 0
    counts.fill(0n)
  }
}
