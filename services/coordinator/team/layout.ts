import {
  createOutputBuffer,
  createRowBuffer,
  type OutputBuffer,
  type RowBuffer,
  rowEncoding,
} from '../../dispatch/rows.ts'
import type { WeightFormat } from '../../model/format.ts'
import { type ModelSpec, moeLayers } from '../../model/spec.ts'
import { kvBlockTokens } from './kv-cache.ts'

/**
 * The memory that a coordinator's threads share during a step, allocated once. R: rows of a step, H: hidden,
 * k: experts per token, S: rows of a head slice, V: vocabulary, T: threads of the team.
 */
export type StepBuffers = {
  /** Counters of the step protocol, see `controlWords`. */
  control: Int32Array<SharedArrayBuffer>
  /** The step: one entry of `itemWords` per sequence. */
  items: Int32Array<SharedArrayBuffer>
  /** [slots, blocks of the longest sequence]: where each sequence's keys and values lie, by the number of the block. */
  blocks: Int32Array<SharedArrayBuffer>
  /** A whole block of the KV cache on its way out or in, the heads of all threads: see `KvCache.read`. */
  kvBlock: Float32Array<SharedArrayBuffer>
  /** [R] token ids. */
  tokens: Int32Array<SharedArrayBuffer>
  /** [R + 1, H] the residual stream. The row behind the last pads odd counts. */
  x: Float32Array<SharedArrayBuffer>
  /** [R + 1, heads * headDim] attention outputs. */
  attention: Float32Array<SharedArrayBuffer>
  /** [R, heads + kvHeads] sums of squares per head, for norms over the whole q and k. */
  squares: Float64Array<SharedArrayBuffer>
  /** [R + 1, inner] of dense layers. */
  inner: Float32Array<SharedArrayBuffer>
  /** Routed layers: [R, k] ids, ascending in a row, their weights, and where their outputs lie. */
  expertIds: Int32Array<SharedArrayBuffer>
  expertWeights: Float32Array<SharedArrayBuffer>
  outputRows: Int32Array<SharedArrayBuffer>
  rows: RowBuffer
  outputs: OutputBuffer
  /** [layers, experts of the widest]: rows that each expert got since the start, where the team computes experts itself. */
  expertRows: Float64Array<SharedArrayBuffer>
  /** Head slice: what is asked of each row, `headWords` each. */
  head: Int32Array<SharedArrayBuffer>
  /** [S, V]; log-probabilities in place where all of them were asked for. */
  logits: Float32Array<SharedArrayBuffer>
  /** Results of the head slice, `resultWords` each, and the likeliest tokens [S, topMax]. */
  results: Int32Array<SharedArrayBuffer>
  chosen: Float32Array<SharedArrayBuffer>
  topIds: Int32Array<SharedArrayBuffer>
  topLogprobs: Float32Array<SharedArrayBuffer>
  /** [T, phases] ms, summed since the start. */
  profile: Float64Array<SharedArrayBuffer>
  /** [T, phases] of these, ms inside compiled kernels: ONNX Runtime's, attention's, sampling's. */
  runtime: Float64Array<SharedArrayBuffer>
  /** [1] ms in which a thread was inside a kernel: of each stretch between two barriers the longest, summed. */
  inside: Float64Array<SharedArrayBuffer>
  /** [2, T] ms inside kernels in the present stretch and in the one before. */
  stretches: Float64Array<SharedArrayBuffer>
}

export const controlWords = {
  /** Raised to start a command, and when all threads have finished it. */
  go: 0,
  done: 1,
  command: 2,
  argument: 3,
  rows: 4,
  items: 5,
  headRows: 6,
  /** Threads that finished the command. */
  finished: 7,
  failed: 8,
  /** The layer whose experts are needed next, or the number of layers. */
  stoppedAt: 9,
  /** Three words. */
  barrier: 10,
  /** A run ends when a layer's experts have computed, so that the step's routing can be read. */
  pauses: 13,
  /** The head of the slice follows the last layer. */
  headFollows: 14,
  size: 16,
} as const

export const commands = { messages: 0, run: 1, head: 2, close: 3, blockOut: 4, blockIn: 5 } as const

export const itemWords = { slot: 0, start: 1, count: 2, row: 3, size: 4 } as const

/** `top`: how many of the likeliest; -1: the whole vocabulary; -2: no log-probabilities at all. */
export const headWords = { row: 0, slot: 1, target: 2, position: 3, top: 4, size: 5 } as const
export const noLogprobs = -2
/** `target` of a row whose token is to be drawn. */
export const drawToken = -1

export const resultWords = { token: 0, rank: 1, topCount: 2, size: 3 } as const

export const phases = [
  'embed',
  'qkv',
  'attention',
  'output',
  'router',
  'expert',
  'combine',
  'dense',
  'head',
  'sampling',
  'waiting',
] as const
export type Phase = (typeof phases)[number]

export type TeamLimits = {
  /** Threads that share attention, linear layers and sampling. */
  threads: number
  /** Threads that compute experts, the same ones as far as there are; 0: experts are computed elsewhere. */
  ranks: number
  /** R. */
  rowsMax: number
  /** Slots, and items of a step. */
  itemsMax: number
  /** KV blocks of the longest sequence. */
  sequenceBlocks: number
  /** S. */
  headRowsMax: number
  /** Most alternatives per token. */
  topMax: number
}

/** All threads of a team. */
export function teamSize({ threads, ranks }: Pick<TeamLimits, 'threads' | 'ranks'>): number {
  return Math.max(threads, ranks)
}

const shared = (bytes: number) => new SharedArrayBuffer(Math.max(bytes, 8))

export function createStepBuffers(spec: ModelSpec, format: WeightFormat, limits: TeamLimits): StepBuffers {
  const { rowsMax, headRowsMax, topMax } = limits
  const widest = (pick: (layer: ModelSpec['layers'][number]) => number) => Math.max(1, ...spec.layers.map(pick))
  const queries = widest(({ attention }) => attention.heads * attention.headDim)
  const heads = widest(({ attention }) => attention.heads + attention.kvHeads)
  const inner = widest(({ ffn }) => (ffn.kind === 'dense' ? ffn.inner : 0))
  const expertsPerToken = Math.max(0, ...moeLayers(spec).map(({ ffn }) => ffn.expertsPerToken))
  const experts = Math.max(0, ...moeLayers(spec).map(({ ffn }) => ffn.experts))
  const size = teamSize(limits)
  const floats = (count: number) => new Float32Array(shared(count * 4))
  const ints = (count: number) => new Int32Array(shared(count * 4))
  return {
    control: ints(controlWords.size),
    items: ints(limits.itemsMax * itemWords.size),
    blocks: ints(limits.itemsMax * limits.sequenceBlocks),
    kvBlock: floats(
      spec.layers.reduce((sum, { attention }) => sum + 2 * attention.kvHeads * kvBlockTokens * attention.headDim, 0),
    ),
    tokens: ints(rowsMax),
    x: floats((rowsMax + 1) * spec.hidden),
    attention: floats((rowsMax + 1) * queries),
    squares: new Float64Array(shared(rowsMax * heads * 8)),
    inner: floats((rowsMax + 1) * inner),
    expertIds: ints(rowsMax * expertsPerToken),
    expertWeights: floats(rowsMax * expertsPerToken),
    outputRows: ints(rowsMax * expertsPerToken),
    rows: createRowBuffer(rowEncoding(format), spec.hidden, expertsPerToken > 0 ? rowsMax : 0),
    outputs: createOutputBuffer(spec.hidden, rowsMax * expertsPerToken),
    expertRows: new Float64Array(shared(spec.layers.length * experts * 8)),
    head: ints(headRowsMax * headWords.size),
    logits: floats(headRowsMax * spec.vocabulary),
    results: ints(headRowsMax * resultWords.size),
    chosen: floats(headRowsMax),
    topIds: ints(headRowsMax * topMax),
    topLogprobs: floats(headRowsMax * topMax),
    profile: new Float64Array(shared(size * phases.length * 8)),
    runtime: new Float64Array(shared(size * phases.length * 8)),
    inside: new Float64Array(shared(8)),
    stretches: new Float64Array(shared(2 * size * 8)),
  }
}
