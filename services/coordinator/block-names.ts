import { hash } from 'node:crypto'
import { kvBlockTokens } from './team/kv-cache.ts'

/**
 * Names of a sequence's full blocks of the KV cache: each is the SHA-256 of the one before and the block's tokens, so it
 * stands for all tokens up to its end. `names`, those of the first ones, grow to `count`.
 */
export function extendNames(names: string[], tokens: readonly number[], cacheSalt: string, count: number): void {
  for (let next = names.length; next < count; next++) {
    const block = Int32Array.from(tokens.slice(next * kvBlockTokens, (next + 1) * kvBlockTokens))
    const before = names[next - 1] ?? hash('sha256', cacheSalt)
    names.push(hash('sha256', Buffer.concat([Buffer.from(before, 'hex'), Buffer.from(block.buffer)])))
  }
}

/** Blocks of a prompt that may be found instead of computed: of at least one token the logits are needed. */
export function findableBlocks(tokens: number): number {
  return Math.floor((tokens - 1) / kvBlockTokens)
}
