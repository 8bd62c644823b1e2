import { expect, test } from 'vitest'
import { emptyView } from '../../services/cluster/view.ts'
import { eraOf } from '../../services/coordinator/kv-era.ts'

const view = { ...emptyView, generation: 1, suspensions: 2, suspended: new Map([['b', 'differs']]) }

test.each([
  { what: 'other experts', now: view, numerics: 'other' },
  { what: 'no experts', now: view, numerics: undefined },
  { what: 'another store', now: { ...view, generation: 2 }, numerics: 'class' },
  { what: 'a node suspended and taken back', now: { ...view, suspensions: 4 }, numerics: 'class' },
  { what: 'another node suspended', now: { ...view, suspended: new Map([['c', 'differs']]) }, numerics: 'class' },
])('$what: an era of its own', ({ now, numerics }) => {
  expect(eraOf(now, numerics)).not.toBe(eraOf(view, 'class'))
})

test('who is suspended counts, not why, nor in which order one heard of it', () => {
  const first = {
    ...view,
    suspended: new Map([
      ['a', 'x'],
      ['b', 'y'],
    ]),
  }
  const second = {
    ...view,
    leader: null,
    isReachable: true,
    suspended: new Map([
      ['b', ''],
      ['a', ''],
    ]),
  }
  expect(eraOf(second, 'class')).toBe(eraOf(first, 'class'))
})
