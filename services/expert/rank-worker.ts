import assert from 'node:assert/strict'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { MoeshError } from '../config/errors.ts'
import { hasScale, type OutputBuffer, type RowBuffer, rowBytes, rowEncoding } from '../dispatch/rows.ts'
import type { Weight } from '../graph/graph.ts'
import { type ExpertWeights, expertGraph } from '../graph/layers.ts'
import type { LinearWeights } from '../graph/linear.ts'
import { rowMultiple } from '../graph/linear.ts'
import { type ShardPart, shardLayout } from '../model/tensors.ts'
import { createSession, type Feed, runtimeMs, type Session } from '../runtime/session.ts'
import { announce, waitForChange } from '../runtime/signal.ts'
import type { ShardSource } from './host.ts'
import { controlWords, type FromRank, jobHeader, type RankSetup, type ToRank } from './rank-protocol.ts'

/**
 * A rank: one thread that computes the rows of the experts it holds. It sleeps until its host posts a job, gathers the
 * rows of each expert out of shared memory, runs them, and writes the outputs back into shared memory.
 */

/** Experts of one layer that share a session. */
type Group = { experts: number[]; sources: ShardSource[]; session: Session; counts: BigInt64Array }

const setup = workerData as RankSetup
assert(parentPort !== null)
const port = parentPort

const { spec, format, control } = setup
const { hidden } = spec
const encoding = rowEncoding(format)
const encodedBytes = rowBytes(encoding, hidden)
const scaled = hasScale(encoding)

const groups = new Map<number, Group[]>()
/** What remains of groups that an unload will hit, built before it comes. */
const remains = new Map<Group, Group[]>()
const rowBuffers = new Map<number, RowBuffer>()
const outputBuffers = new Map<number, OutputBuffer>()
let job = new Int32Array(new SharedArrayBuffer(0))

/** Gathered rows [capacity, encodedBytes] and scales [capacity]; grown, never shrunk. */
let gatherCapacity = 0
let gathered = new Uint8Array(0)
let gatheredF32 = new Float32Array(0)
let gatheredScales = new Float32Array(0)

function reserveRows(rows: number): void {
  if (rows <= gatherCapacity) return
  gatherCapacity = Math.max(rows, gatherCapacity * 2, 64)
  const bytes = new ArrayBuffer(gatherCapacity * encodedBytes)
  const before = gathered
  const scalesBefore = gatheredScales
  gathered = new Uint8Array(bytes)
  gathered.set(before)
  gatheredF32 = encoding === 'f32' ? new Float32Array(bytes) : new Float32Array(0)
  gatheredScales = new Float32Array(scaled ? gatherCapacity : 0)
  gatheredScales.set(scalesBefore)
}

function moeLayer(layer: number) {
  const ffn = spec.layers[layer]?.ffn
  if (ffn?.kind !== 'moe') throw new MoeshError('INTERNAL', `layer ${layer} has no routed experts`)
  return ffn
}

function buildGroup(layer: number, sources: readonly ShardSource[]): Group {
  const ffn = moeLayer(layer)
  const { parts } = shardLayout(spec, ffn, format)
  const sorted = [...sources].sort((a, b) => a.expert - b.expert)
  const weights = sorted.map(
    (shard): ExpertWeights => ({
      gateUp: expertLinear(parts, shard, 'gate_up', hidden, 2 * ffn.inner),
      down: expertLinear(parts, shard, 'down', ffn.inner, hidden),
    }),
  )
  const session = createSession(expertGraph(format, hidden, ffn.activation, weights), setup)
  return {
    experts: sorted.map(({ expert }) => expert),
    sources: sorted,
    session,
    counts: new BigInt64Array(sorted.length),
  }
}

function expertLinear(
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

function load(layer: number, shards: readonly ShardSource[]): void {
  const present = groups.get(layer) ?? []
  const held = new Set(present.flatMap((group) => group.experts))
  const wanted = shards.filter(({ expert }) => !held.has(expert))
  if (wanted.length === 0) return
  groups.set(layer, [...present, buildGroup(layer, wanted)])
}

/** As few as a running node takes at once, so that rows do not wait long. */
const remainingMax = 4

/** A group that loses some of its experts is built again from the others before the old one goes, in small steps. */
function prepareUnload(ticket: number, layer: number, experts: readonly number[]): void {
  const gone = new Set(experts)
  const steps: (() => void)[] = []
  for (const group of groups.get(layer) ?? []) {
    const rest = group.sources.filter(({ expert }) => !gone.has(expert))
    if (rest.length === 0 || rest.length === group.sources.length) continue
    const built: Group[] = []
    remains.set(group, built)
    for (let from = 0; from < rest.length; from += remainingMax) {
      steps.push(() => built.push(buildGroup(layer, rest.slice(from, from + remainingMax))))
    }
  }
  const next = () =>
    settle(ticket, () => {
      const step = steps.shift()
      if (step === undefined) return true
      try {
        step()
      } catch (thrown) {
        forgetRemains()
        throw thrown
      }
      tasks.unshift({ kind: 'step', work: next })
      return false
    })
  next()
}

function forgetRemains(): void {
  for (const built of remains.values()) for (const { session } of built) session.dispose()
  remains.clear()
}

function unload(layer: number, experts: readonly number[]): void {
  const gone = new Set(experts)
  const next: Group[] = []
  for (const group of groups.get(layer) ?? []) {
    const rest = group.sources.filter(({ expert }) => !gone.has(expert))
    if (rest.length === group.sources.length) next.push(group)
    else {
      const built = remains.get(group) ?? []
      const missing = rest.filter(({ expert }) => !built.some((other) => other.experts.includes(expert)))
      next.push(...built)
      if (missing.length > 0) next.push(buildGroup(layer, missing))
      remains.delete(group)
      group.session.dispose()
    }
  }
  groups.set(layer, next)
}

/**
 * Rows of one run of a session. A long prompt's rows go in several, which bounds what a run takes beside the weights
 * and keeps its intermediate values in the caches.
 */
const runRowsMax = 512

/** Outputs `from` … of a run belong to `count` rows of the shared outputs from `to` on. */
type Segment = { from: number; to: number; count: number }

/**
 * Runs the posted job. The rows of expert i of the job are `counts[i]` consecutive entries of its row indices, and of
 * its outputs. Experts of other ranks are passed over.
 */
function compute(): void {
  const layer = job[jobHeader.layer] ?? 0
  const experts = job[jobHeader.experts] ?? 0
  const rows = rowBuffers.get(job[jobHeader.rowsId] ?? 0)
  const outputs = outputBuffers.get(job[jobHeader.outputsId] ?? 0)
  assert(rows !== undefined)
  assert(outputs !== undefined)
  const padTo = Math.max(rowMultiple(format, hidden), rowMultiple(format, moeLayer(layer).inner))
  let computed = 0
  for (const group of groups.get(layer) ?? []) {
    const run = new GroupRun(group, rows, outputs, padTo)
    let index = 0
    let before = 0
    for (const [member, id] of group.experts.entries()) {
      while (index < experts && (job[jobHeader.size + index] ?? 0) < id) before += countOf(experts, index++)
      if (index >= experts || job[jobHeader.size + index] !== id) continue
      run.add(
        member,
        jobHeader.size + 2 * experts + before,
        (job[jobHeader.outputStart] ?? 0) + before,
        countOf(experts, index),
      )
    }
    computed += run.finish()
  }
  assert.equal(computed, job[jobHeader.rowsHere], `layer ${layer}: rows computed and rows asked for`)
}

function countOf(experts: number, index: number): number {
  return job[jobHeader.size + experts + index] ?? 0
}

/** Gathers a group's rows, sorted by expert, each expert's count padded, and runs them whenever there are enough. */
class GroupRun {
  readonly #group: Group
  readonly #rows: RowBuffer
  readonly #outputs: OutputBuffer
  readonly #padTo: number
  #taken = 0
  #computed = 0
  #segments: Segment[] = []

  constructor(group: Group, rows: RowBuffer, outputs: OutputBuffer, padTo: number) {
    this.#group = group
    this.#rows = rows
    this.#outputs = outputs
    this.#padTo = padTo
    group.counts.fill(0n)
  }

  /** `count` rows of a member, whose indices stand in the job from `indicesAt` on. */
  add(member: number, indicesAt: number, outputAt: number, count: number): void {
    for (let done = 0; done < count; ) {
      if (this.#taken >= runRowsMax) this.#run()
      const part = Math.min(count - done, runRowsMax - this.#taken)
      this.#gather(member, indicesAt + done, part)
      this.#segments.push({ from: this.#taken - Number(this.#group.counts[member]), to: outputAt + done, count: part })
      done += part
      // An expert's rows are one piece of a run.
      if (done < count) this.#run()
    }
  }

  /** Runs what is left; returns the rows computed in all. */
  finish(): number {
    this.#run()
    return this.#computed
  }

  #gather(member: number, indicesAt: number, count: number): void {
    const padded = Math.ceil(count / this.#padTo) * this.#padTo
    const { data, scales } = this.#rows
    reserveRows(this.#taken + padded)
    for (let i = 0; i < padded; i++) {
      const row = job[indicesAt + Math.min(i, count - 1)] ?? 0
      const at = this.#taken + i
      gathered.set(data.subarray(row * encodedBytes, (row + 1) * encodedBytes), at * encodedBytes)
      if (scaled) gatheredScales[at] = scales[row] ?? 0
    }
    this.#group.counts[member] = BigInt(padded)
    this.#taken += padded
  }

  #run(): void {
    const taken = this.#taken
    if (taken === 0) return
    const { session, counts } = this.#group
    const feeds: Record<string, Feed> = {
      rows:
        encoding === 'f32'
          ? { dims: [taken, hidden], type: 'float32', data: gatheredF32.subarray(0, taken * hidden), location: 'cpu' }
          : {
              dims: [taken, encodedBytes],
              type: 'uint8',
              data: gathered.subarray(0, taken * encodedBytes),
              location: 'cpu',
            },
      counts: { dims: [counts.length], type: 'int64', data: counts, location: 'cpu' },
    }
    if (scaled) {
      feeds.scales = { dims: [taken, 1], type: 'float32', data: gatheredScales.subarray(0, taken), location: 'cpu' }
    }
    const y = session.run(feeds).y?.data
    assert(y instanceof Float32Array)
    for (const { from, to, count } of this.#segments) {
      this.#outputs.data.set(y.subarray(from * hidden, (from + count) * hidden), to * hidden)
      this.#computed += count
    }
    this.#segments = []
    this.#taken = 0
    counts.fill(0n)
  }
}

/** Loading and unloading, which wait while there are rows to compute. */
const tasks: (Exclude<ToRank, { kind: `attach-${string}` }> | { kind: 'step'; work: () => void })[] = []

/** Attachments take effect at once: the job that needs them may be posted already. */
function receive(): void {
  for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) {
    const message = next.message as ToRank
    if (message.kind === 'attach-rows') rowBuffers.set(message.rows.id, message.rows)
    else if (message.kind === 'attach-outputs') outputBuffers.set(message.outputs.id, message.outputs)
    else if (message.kind === 'attach-job') job = message.job
    else tasks.push(message)
  }
}

/** `work` returns false when there is more to come before the answer. */
function settle(ticket: number, work: () => unknown): void {
  let answer: FromRank = { kind: 'done', ticket }
  try {
    if (work() === false) return
  } catch (thrown) {
    const code = thrown instanceof MoeshError ? thrown.code : 'INTERNAL'
    answer = { kind: 'failed', ticket, code, message: thrown instanceof Error ? thrown.message : String(thrown) }
  }
  port.postMessage(answer)
}

function computeJob(): void {
  const started = performance.now()
  try {
    compute()
    Atomics.store(control, controlWords.failed, 0)
  } catch (thrown) {
    const answer: FromRank = { kind: 'job-failed', message: thrown instanceof Error ? thrown.message : String(thrown) }
    port.postMessage(answer)
    Atomics.store(control, controlWords.failed, 1)
  }
  setup.computeMs[0] = performance.now() - started
  setup.computeMs[1] = runtimeMs()
  announce(control, controlWords.finished)
}

function serve(): void {
  for (;;) {
    const seen = Atomics.load(control, controlWords.wake)
    // Looked at before the messages are read: what a posted job needs was sent before it.
    const hasJob = Atomics.load(control, controlWords.posted) !== Atomics.load(control, controlWords.finished)
    receive()
    if (hasJob) {
      computeJob()
      continue
    }
    const task = tasks.shift()
    if (task === undefined) waitForChange(control, controlWords.wake, seen)
    else if (task.kind === 'load') settle(task.ticket, () => load(task.layer, task.shards))
    else if (task.kind === 'prepare-unload') prepareUnload(task.ticket, task.layer, task.experts)
    else if (task.kind === 'step') task.work()
    else if (task.kind === 'unload') settle(task.ticket, () => unload(task.layer, task.experts))
    else break
  }
  forgetRemains()
  for (const group of [...groups.values()].flat()) group.session.dispose()
}

serve()
port.close()
