import { MoeshError } from '../config/errors.ts'
import type { ModelSpec } from '../model/spec.ts'
import type { EngineLimits } from './engine.ts'
import { kernelBytesMax } from './team/attention-kernel.ts'
import { kvBlockTokens } from './team/kv-cache.ts'

/** What the user may set; the rest follows from the model and the memory. */
export type CapacitySettings = {
  context: number | undefined
  maxSequences: number | undefined
  maxBatchTokens: number | undefined
  /** Bytes. */
  kvMemory: number | undefined
}

/** Share of the memory that is free at start which the KV cache may take: weights and the system need the rest. */
const kvMemoryShare = 0.4
/** Wide enough that expert kernels work on many rows, short enough that streams do not stall behind a prompt. */
const defaultBatchTokens = 512
const defaultSequences = 128
const queueMax = 1024
/** 64 MiB. */
const tableBlocksMax = 2 ** 24

/** Bytes that the keys and values of one token take, over all layers. */
export function kvBytesPerToken(spec: ModelSpec): number {
  return spec.layers.reduce((sum, { attention }) => sum + 2 * attention.kvHeads * attention.headDim * 4, 0)
}

/** KV heads of the thread that has the most. */
const headsOfThread = (kvHeads: number, threads: number) => Math.ceil(kvHeads / threads)

function kvBytesPerTokenOfThread(spec: ModelSpec, threads: number): number {
  return spec.layers.reduce((sum, { attention }) => {
    return sum + 2 * headsOfThread(attention.kvHeads, threads) * attention.headDim * 4
  }, 0)
}

/** What the attention kernel takes of a thread's memory beside keys and values: projections, rotary tables, scores. */
function scratchBytes(spec: ModelSpec, threads: number, context: number, rows: number): number {
  const widest = spec.layers.reduce((most, { attention: { heads, kvHeads, headDim } }) => {
    return Math.max(most, headsOfThread(kvHeads, threads) * (heads / kvHeads + 2) * headDim)
  }, 0)
  const headDim = Math.max(...spec.layers.map(({ attention }) => attention.headDim))
  // Spans grow by doubling, and what they leave behind is lost.
  return 2 * 4 * (rows * widest + context * (headDim + 10)) + 64 * 2 ** 20
}

/**
 * Errors: USAGE where the settings leave no room for a single sequence, ask for more than the model has, or for a larger
 * KV cache than the threads can hold.
 */
export function engineCapacity(
  spec: ModelSpec,
  settings: CapacitySettings,
  { freeBytes, threads }: { freeBytes: number; threads: number },
): EngineLimits {
  const maxBatchTokens = settings.maxBatchTokens ?? Math.max(defaultBatchTokens, settings.maxSequences ?? 0)
  const perToken = kvBytesPerToken(spec)
  const scratch = scratchBytes(spec, threads, settings.context ?? spec.contextLength, maxBatchTokens)
  const holdable = Math.floor(((kernelBytesMax - scratch) / kvBytesPerTokenOfThread(spec, threads)) * perToken)
  if (settings.kvMemory !== undefined && settings.kvMemory > holdable) {
    throw new MoeshError(
      'USAGE',
      `--kv-memory ${settings.kvMemory} is more than ${threads} threads can hold of this model: ${holdable} bytes`,
      'give it less, or more --threads while there are KV heads for them',
    )
  }
  const kvBytes = settings.kvMemory ?? Math.min(holdable, Math.floor(freeBytes * kvMemoryShare))
  const kvTokensMax = Math.floor(kvBytes / perToken / kvBlockTokens) * kvBlockTokens
  if (kvTokensMax < kvBlockTokens) {
    throw new MoeshError(
      'USAGE',
      `the KV cache has ${kvBytes} bytes, and ${kvBlockTokens} tokens of this model need ${kvBlockTokens * perToken}`,
      'give it more with --kv-memory',
    )
  }
  if (settings.context !== undefined && settings.context > spec.contextLength) {
    throw new MoeshError('USAGE', `--context ${settings.context} is beyond the model's ${spec.contextLength}`)
  }
  const maxSequences = settings.maxSequences ?? Math.min(defaultSequences, maxBatchTokens)
  if (maxSequences > maxBatchTokens) {
    throw new MoeshError(
      'USAGE',
      `--max-sequences ${maxSequences} is above --max-batch-tokens ${maxBatchTokens}`,
      'every running sequence needs a row of a step',
    )
  }
  const contextLength = Math.min(settings.context ?? spec.contextLength, kvTokensMax)
  // Every sequence has a row of a table with the blocks of the longest one.
  const tableBlocks = maxSequences * Math.ceil(contextLength / kvBlockTokens)
  if (tableBlocks > tableBlocksMax) {
    throw new MoeshError(
      'USAGE',
      `--max-sequences ${maxSequences} with a context of ${contextLength} needs a table of ${tableBlocks} KV blocks, ` +
        `more than ${tableBlocksMax}`,
      'give it fewer, or a smaller --context',
    )
  }
  return {
    contextLength,
    maxSequences,
    maxBatchTokens,
    queueMax,
    kvTokensMax,
  }
}
