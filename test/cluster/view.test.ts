import { describe, expect, test } from 'vitest'
import type { BeatReply } from '../../services/cluster/store.ts'
import { applyOutage, applyReply, emptyView } from '../../services/cluster/view.ts'
import { nodeEntry } from '../cluster-store/contract.ts'

function reply(more: Partial<BeatReply> = {}): BeatReply {
  return {
    isKnown: true,
    isFull: false,
    cursor: { generation: 1, version: 1 },
    nodes: [],
    left: [],
    graceMs: 0,
    drained: new Map(),
    suspended: new Map(),
    suspensions: 0,
    leader: null,
    target: null,
    active: null,
    ...more,
  }
}

const full = (ids: string[], more: Partial<BeatReply> = {}) =>
  reply({ isFull: true, nodes: ids.map((id) => nodeEntry(id)), ...more })

describe('a view', () => {
  const first = applyReply(emptyView, full(['a', 'b']), 0)

  test('begins with whom the store knows', () => {
    expect(first.changes).toEqual([
      { kind: 'joined', id: 'a' },
      { kind: 'joined', id: 'b' },
      { kind: 'reachable', isReachable: true },
    ])
    expect([...first.view.nodes.keys()]).toEqual(['a', 'b'])
  })

  test.each([
    { what: nodeEntry('a', 'other'), kind: 'replaced' },
    { what: { ...nodeEntry('a'), status: { ...nodeEntry('a').status, usedBytes: 1 } }, kind: 'changed' },
    { what: nodeEntry('c'), kind: 'joined' },
  ])('names a node that has $kind', ({ what, kind }) => {
    expect(applyReply(first.view, reply({ nodes: [what] }), 1).changes).toEqual([{ kind, id: what.record.id }])
  })

  test('is not different for a node that is told again as it was', () => {
    expect(applyReply(first.view, reply({ nodes: [nodeEntry('a')] }), 1).changes).toEqual([])
  })

  test('tells who left from who is lost, and shows the lost for a minute', () => {
    const left = [
      { id: 'a', expired: true },
      { id: 'b', expired: false },
      { id: 'stranger', expired: true },
    ]
    const next = applyReply(first.view, reply({ left }), 5)
    expect(next.changes).toEqual([
      { kind: 'lost', id: 'a' },
      { kind: 'left', id: 'b' },
    ])
    expect(next.view.lost.get('a')).toMatchObject({ sinceMs: 5, reason: 'its lease ended' })
    expect(applyReply(next.view, reply(), 60_004).view.lost.size).toBe(1)
    expect(applyReply(next.view, reply(), 60_005).view.lost.size).toBe(0)
  })

  test('stays as it is while the store is away', () => {
    const away = applyOutage(first.view)
    expect(away.changes).toEqual([{ kind: 'reachable', isReachable: false }])
    expect(away.view.nodes).toBe(first.view.nodes)
    expect(applyOutage(away.view).changes).toEqual([])
  })

  describe('of a store that came back empty', () => {
    const before = applyReply(
      first.view,
      reply({ drained: new Map([['a', 'operator']]), suspended: new Map([['b', 'wrong rows']]) }),
      10,
    ).view
    const cursor = { generation: 2, version: 1 }
    const back = applyReply(before, full(['c'], { cursor, graceMs: 100 }), 20)

    test('keeps whom it knew, and what was drained or suspended, until the store has met everybody', () => {
      expect([...back.view.nodes.keys()].sort()).toEqual(['a', 'b', 'c'])
      expect(back.view.isSettling).toBe(true)
      expect(back.view.drained.get('a')).toBe('operator')
      expect(back.view.suspended.get('b')).toBe('wrong rows')
      expect(back.changes).toContainEqual({ kind: 'generation' })
    })

    test('then loses those who did not come back', () => {
      const oneBack = applyReply(back.view, reply({ cursor, graceMs: 50, nodes: [nodeEntry('a')] }), 30)
      expect(oneBack.changes).toEqual([])
      const over = applyReply(oneBack.view, reply({ cursor }), 40)
      expect(over.changes).toContainEqual({ kind: 'lost', id: 'b' })
      expect([...over.view.nodes.keys()].sort()).toEqual(['a', 'c'])
    })
  })
})
