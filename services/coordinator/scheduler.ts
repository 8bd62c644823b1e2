import assert from 'node:assert/strict'
import { kvBlockTokens } from './team/kv-cache.ts'

/**
 * Continuous batching as a pure function: who computes how many rows in the next step. Decodes go first, one row each,
 * so that running streams keep their pace; the rest of the step's rows goes to prompts, in chunks, and then to guesses of
 * what follows. When the KV cache is
 * full, the last in order gives its place up and begins again later; it loses time, never a token, since what is
 * computed again has the same bits.
 */

export type Schedulable = {
  /** Higher runs first. */
  priority: number
  /** Ties: the earlier arrival. */
  arrival: number
  /** Tokens whose keys and values are cached. */
  cached: number
  /** Tokens known but not cached yet: 1 while decoding, more while the prompt is read; all of them while it waits. */
  pending: number
  /** Guesses of what follows the pending tokens, to be computed if there is room that nobody else wants. */
  guessed: number
}

export type StepLimits = {
  /** Rows of a step. */
  rowsMax: number
  sequencesMax: number
}

/** The KV cache, in blocks. */
export type KvView<S> = {
  /** Blocks that nobody uses. */
  readonly free: number
  /** Of a running sequence. */
  held(sequence: S): number
  /** Of these, blocks that are free when it gives its place up: nobody else uses them. */
  own(sequence: S): number
  /** What a waiting sequence finds of its tokens, in how many blocks, and how many of these nobody uses now. */
  found(sequence: S): { tokens: number; blocks: number; unused: number }
}

export type StepPlan<S> = {
  /** In the order of the step's rows. */
  scheduled: { sequence: S; count: number; guessed: number }[]
  /**
   * Running sequences that lose their cache and wait again. Blocks that only they shared are free after that, which the
   * plan does not know: if it schedules nobody, plan again.
   */
  preempted: S[]
  /** Waiting sequences that begin to run; they are among the scheduled. */
  admitted: S[]
}

export const kvBlocks = (tokens: number) => Math.ceil(tokens / kvBlockTokens)

export function inOrder<S extends Schedulable>(sequences: readonly S[]): S[] {
  return [...sequences].sort((a, b) => b.priority - a.priority || a.arrival - b.arrival)
}

export function planStep<S extends Schedulable>(
  running: readonly S[],
  waiting: readonly S[],
  limits: StepLimits,
  kv: KvView<S>,
): StepPlan<S> {
  const order = inOrder(running)
  const active = new Set(order)
  const scheduled = new Map<S, number>()
  const preempted: S[] = []
  let rows = limits.rowsMax
  let { free } = kv

  /** Takes the KV blocks for `count` more tokens, from those last in order if need be. */
  const reserve = (sequence: S, count: number): boolean => {
    const need = kvBlocks(sequence.cached + count) - kv.held(sequence)
    while (need > free) {
      const victim = order.findLast((other) => active.has(other) && !scheduled.has(other))
      if (victim === undefined) return false
      active.delete(victim)
      preempted.push(victim)
      free += kv.own(victim)
      if (victim === sequence) return false
    }
    free -= need
    return true
  }

  const decodesFirst = [...order.filter(({ pending }) => pending === 1), ...order.filter(({ pending }) => pending > 1)]
  for (const sequence of decodesFirst) {
    assert(sequence.pending >= 1)
    if (rows === 0) break
    if (!active.has(sequence)) continue
    const count = Math.min(sequence.pending, rows)
    if (!reserve(sequence, count)) continue
    scheduled.set(sequence, count)
    rows -= count
  }

  const admitted: S[] = []
  if (preempted.length === 0) {
    for (const sequence of inOrder(waiting)) {
      if (rows === 0 || active.size >= limits.sequencesMax) break
      // All of its prompt must fit, or it would soon be preempted; a first one always may, alone.
      const found = kv.found(sequence)
      const need = kvBlocks(sequence.pending + 1) - found.blocks + found.unused
      if (need > free && active.size > 0) break
      const count = Math.min(sequence.pending - found.tokens, rows)
      free -= need
      active.add(sequence)
      admitted.push(sequence)
      scheduled.set(sequence, count)
      rows -= count
    }
  }
  /** Of rows and blocks that are left. */
  const guessesOf = (sequence: S, count: number): number => {
    const { cached, pending, guessed } = sequence
    if (guessed === 0 || count < pending) return 0
    const tokens = cached + count
    const blocks = kvBlocks(tokens)
    const fitting = Math.min(guessed, rows, (blocks + free) * kvBlockTokens - tokens)
    rows -= fitting
    free -= Math.max(0, kvBlocks(tokens + fitting) - blocks)
    return fitting
  }
  return {
    scheduled: [...scheduled].map(([sequence, count]) => ({ sequence, count, guessed: guessesOf(sequence, count) })),
    preempted,
    admitted,
  }
}
