import { hash } from 'node:crypto'
import type { ClusterView } from '../cluster/view.ts'

/**
 * What bits of the KV cache depend on beside tokens and model, and nodes do not announce with them: experts of another
 * class (`numerics`) compute other bits, and what a suspended node computed may be wrong. A new store has forgotten what
 * was suspended before. Equal on coordinators that have seen the same.
 */
export function eraOf(
  { generation, suspensions, suspended }: Pick<ClusterView, 'generation' | 'suspensions' | 'suspended'>,
  numerics: string | undefined,
): string {
  return hash('sha256', JSON.stringify([numerics, generation, suspensions, [...suspended.keys()].sort()]))
}
