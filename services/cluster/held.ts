import { MoeshError } from '../config/errors.ts'
import type { Held } from './node.ts'

/** More experts than this in one layer are an error of whoever says so. */
export const expertsMax = 65_536

/** Experts by layer, as a bitmap each: 256 experts take 44 characters. */
export function encodeHeld(shards: ReadonlyMap<number, Iterable<number>>): Held {
  const held: Held = {}
  for (const layer of [...shards.keys()].sort((a, b) => a - b)) {
    const experts = [...(shards.get(layer) ?? [])]
    if (experts.length === 0) continue
    const bitmap = Buffer.alloc((Math.max(...experts) >> 3) + 1)
    for (const expert of experts) {
      if (!Number.isInteger(expert) || expert < 0 || expert >= expertsMax) {
        throw new MoeshError('INVALID_ARGUMENT', `expert ${expert} of layer ${layer}`, `0 to ${expertsMax - 1}`)
      }
      bitmap[expert >> 3] = (bitmap[expert >> 3] ?? 0) | (1 << (expert & 7))
    }
    held[layer] = bitmap.toString('base64')
  }
  return held
}

/** Inverse of `encodeHeld`. Layers without experts are left out. */
export function decodeHeld(held: Held): Map<number, Set<number>> {
  const shards = new Map<number, Set<number>>()
  for (const [layer, encoded] of Object.entries(held)) {
    const experts = new Set<number>()
    const bitmap = Buffer.from(encoded, 'base64')
    bitmap.forEach((bits, index) => {
      for (let bit = 0; bit < 8; bit++) if (bits & (1 << bit)) experts.add(index * 8 + bit)
    })
    if (experts.size > 0) shards.set(Number(layer), experts)
  }
  return shards
}

/** Number of (layer, expert) copies. */
export function countHeld(shards: ReadonlyMap<number, ReadonlySet<number>>): number {
  let count = 0
  for (const experts of shards.values()) count += experts.size
  return count
}
