import { expect, test } from 'vitest'
import { assignment } from '../../services/cluster/assignment.ts'
import { decodeHeld, encodeHeld } from '../../services/cluster/held.ts'
import type { Placement } from '../../services/cluster/placement.ts'
import { placementOf } from '../cluster-store/contract.ts'

/** Experts of layer 0 that node `a` shall hold; `b` holds the others of 0 to 3. */
function placement(epoch: number, experts: readonly number[]): Placement {
  const flat = [0, 1, 2, 3].map((expert) => [experts.includes(expert) ? 0 : 1, 65_536])
  return { ...placementOf(epoch, 1), layers: [{ layer: 0, experts: flat }] }
}

const one = placement(1, [0, 1])
const two = placement(2, [1, 2])

test.each([
  { why: 'nothing without a target', target: null, active: null, held: [0], load: [], unload: [] },
  { why: 'what is missing', target: one, active: null, held: [0], load: [1], unload: [] },
  { why: 'the new beside the old', target: two, active: one, held: [0, 1], load: [2], unload: [] },
  { why: 'leftovers go after the flip', target: two, active: two, held: [0, 1, 2], load: [], unload: [0] },
  { why: 'nothing to do', target: two, active: two, held: [1, 2], load: [], unload: [] },
  {
    why: 'leftovers stay where no placement is active',
    target: two,
    active: null,
    held: [0, 1, 2],
    load: [],
    unload: [],
  },
])('an expert node is told to do: $why', ({ target, active, held, load, unload }) => {
  const result = assignment('a', target, active, new Map([[0, new Set(held)]]))
  expect(result.load.map(({ expert }) => expert)).toEqual(load)
  expect(result.unload.map(({ expert }) => expert)).toEqual(unload)
})

test('a node that the placement does not name lets everything go after the flip', () => {
  const held = new Map([[0, new Set([0, 3])]])
  expect(assignment('c', two, one, held)).toEqual({ load: [], unload: [] })
  expect(assignment('c', two, two, held).unload.map(({ expert }) => expert)).toEqual([0, 3])
})

test('held shards survive their encoding', () => {
  const held = new Map([
    [0, new Set([0, 7, 8, 255])],
    [60, new Set([3])],
  ])
  expect(decodeHeld(encodeHeld(held))).toEqual(held)
  expect(encodeHeld(new Map([[3, []]]))).toEqual({})
  expect(() => encodeHeld(new Map([[0, [-1]]]))).toThrow(/expert -1/)
})
