import { expect, test } from 'vitest'
import { findMismatches, type IdleFacts, SelfCheck } from '../../services/coordinator/self-check.ts'
import { routeTable } from '../../services/dispatch/route.ts'

const table = (nodeId: string) =>
  routeTable(1, [{ layer: 0, experts: 1 }], [{ layer: 0, expert: 0, nodeId, weight: 1 }])
const agreeing: IdleFacts = {
  requests: 0,
  dispatches: 0,
  kvTokensUsed: 0,
  routes: table('a'),
  expectedRoutes: table('a'),
  unlinked: [],
}

test.each<{ why: string; facts: Partial<IdleFacts>; found: string[] }>([
  { why: 'all agree', facts: {}, found: [] },
  { why: 'rows of nobody', facts: { dispatches: 1 }, found: ['dispatches'] },
  { why: 'KV of nobody', facts: { kvTokensUsed: 16 }, found: ['kv'] },
  { why: 'a stale route', facts: { expectedRoutes: table('b') }, found: ['routes'] },
  { why: 'no way to a node', facts: { unlinked: ['a'] }, found: ['links'] },
  { why: 'requests run', facts: { requests: 1, dispatches: 1, kvTokensUsed: 16 }, found: [] },
])('finds what disagrees: $why', ({ facts, found }) => {
  expect(findMismatches({ ...agreeing, ...facts }).map(({ what }) => what)).toEqual(found)
})

test('only what lasts is repaired', () => {
  const check = new SelfCheck()
  expect(check.look({ ...agreeing, dispatches: 1 })).toEqual([])
  expect(check.look(agreeing)).toEqual([])
  expect(check.look({ ...agreeing, dispatches: 1 })).toEqual([])
  expect(check.look({ ...agreeing, dispatches: 1 })).toHaveLength(1)
})
