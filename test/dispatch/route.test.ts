import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type ExpertCopy, nobody, routeTable } from '../../services/dispatch/route.ts'
import { groupRows, RowGroups } from '../../services/dispatch/row-groups.ts'
import { routedRows } from './experts.ts'

const experts = 6
const nodes = ['a', 'b', 'c', 'd']

const copies = fc.uniqueArray(
  fc.record({
    layer: fc.constant(0),
    expert: fc.nat(experts - 1),
    nodeId: fc.constantFrom(...nodes),
    weight: fc.constantFrom(0, 0.5, 1, 3),
  }),
  { selector: ({ expert, nodeId }) => `${expert}${nodeId}` },
)
const choices = fc.array(fc.subarray([0, 1, 2, 3, 4, 5], { minLength: 2, maxLength: 2 }), { maxLength: 40 })

function group(
  expertIds: number[][],
  held: readonly ExpertCopy[],
  late: string[] = [],
  step = 0,
  ranks: ReadonlyMap<string, number> = new Map(),
) {
  const table = routeTable(1, [{ layer: 0, experts }], held, ranks)
  const routed = routedRows(0, expertIds)
  const groups = new RowGroups()
  groupRows(
    groups,
    routed,
    table,
    Uint8Array.from(table.nodeIds, (id) => (late.includes(id) ? 1 : 0)),
    step,
  )
  const entries = Array.from({ length: groups.groupCount }, (_, g) => {
    const node = groups.groupNode[g] ?? nobody
    const [from = 0, to = 0] = groups.entryStart.subarray(g, g + 2)
    return Array.from({ length: to - from }, (_, i) => ({
      nodeId: node === nobody ? null : (table.nodeIds[node] ?? ''),
      expert: groups.entryExpert[from + i] ?? -1,
      start: groups.rowStart[from + i] ?? -1,
      rows: groups.entryRows[from + i] ?? -1,
    }))
  })
  return { groups, routed, entries: entries.flat() }
}

test('every pair has an output row of its own, in an entry of its expert on a node that holds it', () => {
  fc.assert(
    fc.property(choices, copies, fc.subarray(nodes), fc.nat(), (expertIds, held, late, step) => {
      const { groups, routed, entries } = group(expertIds, held, late, step)
      expect(new Set(routed.outputRows).size).toBe(routed.outputRows.length)
      routed.expertIds.forEach((expert, pair) => {
        const output = routed.outputRows[pair] ?? -1
        expect(groups.rowIndices[output]).toBe(Math.floor(pair / 2))
        const entry = entries.find(({ start, rows }) => output >= start && output < start + rows)
        expect(entry?.expert).toBe(expert)
        const homes = held.filter((copy) => copy.expert === expert).map(({ nodeId }) => nodeId)
        if (entry?.nodeId == null) expect(homes).toEqual([])
        else expect(homes).toContain(entry.nodeId)
      })
    }),
    { seed: 5, numRuns: 300 },
  )
})

test('groups and their entries are contiguous, nodes and experts ascend', () => {
  fc.assert(
    fc.property(choices, copies, (expertIds, held) => {
      const { entries, groups } = group(expertIds, held)
      let next = 0
      entries.forEach((entry, index) => {
        expect(entry.start).toBe(next)
        expect(entry.rows).toBeGreaterThan(0)
        next += entry.rows
        const before = entries[index - 1]
        if (before && before.nodeId === entry.nodeId) expect(before.expert).toBeLessThan(entry.expert)
      })
      expect(next).toBe(expertIds.length * 2)
      expect(groups.pairCount).toBe(next)
    }),
    { seed: 6, numRuns: 200 },
  )
})

test('a copy takes its share by weight, within one row', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 9, max: 200 }),
      fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 4 }),
      fc.nat(),
      (rows, weights, step) => {
        const held = weights.map((weight, i) => ({ layer: 0, expert: 2, nodeId: nodes[i] ?? '', weight }))
        const { entries } = group(Array(rows).fill([2]), held, [], step)
        const sum = weights.reduce((total, weight) => total + weight, 0)
        weights.forEach((weight, i) => {
          const got = entries.find(({ nodeId }) => nodeId === nodes[i])?.rows ?? 0
          expect(Math.abs(got - (rows * weight) / sum)).toBeLessThan(1.000001)
        })
      },
    ),
    { seed: 7, numRuns: 200 },
  )
})

test('single rows reach all copies in time, as their weights say', () => {
  const held = [
    { layer: 0, expert: 1, nodeId: 'a', weight: 1 },
    { layer: 0, expert: 1, nodeId: 'b', weight: 3 },
  ]
  let toB = 0
  for (let step = 0; step < 1000; step++) if (group([[1]], held, [], step * 16).entries[0]?.nodeId === 'b') toB += 1
  expect(toB).toBeGreaterThan(735)
  expect(toB).toBeLessThan(765)
})

test('few rows of an expert stay on one copy', () => {
  const held = nodes.map((nodeId) => ({ layer: 0, expert: 1, nodeId, weight: 1 }))
  for (let step = 0; step < 20; step++) {
    for (const rows of [1, 2, 8]) expect(group(Array(rows).fill([1]), held, [], step).entries).toHaveLength(1)
    expect(group(Array(9).fill([1]), held, [], step).entries).toHaveLength(4)
  }
})

const perNode = (entries: readonly { nodeId: string | null }[]) =>
  nodes.map((id) => entries.filter(({ nodeId }) => nodeId === id).length).filter((count) => count > 0)

test('experts of few rows are spread evenly over nodes that hold them all, by the ranks of the nodes', () => {
  const everywhere = (ids: string[]) =>
    ids.flatMap((nodeId) => [0, 1, 2, 3, 4, 5].map((expert) => ({ layer: 0, expert, nodeId, weight: 1 })))
  for (let step = 0; step < 50; step++) {
    expect(perNode(group([[0, 1, 2, 3, 4, 5]], everywhere(['a', 'b']), [], step).entries)).toEqual([3, 3])
    expect(perNode(group([[0, 1, 2, 3, 5]], everywhere(['a', 'b', 'c', 'd']), [], step).entries).sort()).toEqual([
      1, 1, 1, 2,
    ])
    const ranks = new Map([['b', 2]])
    expect(perNode(group([[0, 1, 2, 3, 4, 5]], everywhere(['a', 'b']), [], step, ranks).entries)).toEqual([2, 4])
  }
})

test('where one node is the busiest, none of its experts of few rows could go to a less busy one', () => {
  fc.assert(
    fc.property(choices, copies, fc.subarray(nodes), fc.nat(), (expertIds, held, late, step) => {
      const { entries } = group(expertIds, held, late, step)
      const cost = ({ rows }: { rows: number }) => Math.max(8, rows)
      const costs = new Map(nodes.map((id) => [id, 0]))
      for (const entry of entries) {
        if (entry.nodeId !== null) costs.set(entry.nodeId, (costs.get(entry.nodeId) ?? 0) + cost(entry))
      }
      const busiest = Math.max(...costs.values())
      if ([...costs.values()].filter((other) => other === busiest).length > 1) return
      const isLate = (id: string) => (late.includes(id) ? 1 : 0)
      for (const entry of entries) {
        const { nodeId, expert, rows } = entry
        if (nodeId === null || costs.get(nodeId) !== busiest || rows > 8) continue
        if (entries.filter((other) => other.expert === expert).length > 1) continue
        for (const copy of held) {
          if (copy.expert !== expert || copy.weight === 0 || isLate(copy.nodeId) > isLate(nodeId)) continue
          if (copy.nodeId !== nodeId)
            expect((costs.get(copy.nodeId) ?? 0) + cost(entry)).toBeGreaterThanOrEqual(busiest)
        }
      }
    }),
    { seed: 9, numRuns: 500 },
  )
})

test('a late node gets rows only of experts that live nowhere else', () => {
  fc.assert(
    fc.property(choices, copies, fc.subarray(nodes), (expertIds, held, late) => {
      const { entries } = group(expertIds, held, late)
      for (const { nodeId, expert } of entries) {
        if (nodeId === null || !late.includes(nodeId)) continue
        expect(held.filter((copy) => copy.expert === expert).every((copy) => late.includes(copy.nodeId))).toBe(true)
      }
    }),
    { seed: 8, numRuns: 200 },
  )
})

test('equal arguments give equal groups, also in arrays that were used before', () => {
  const held = nodes.flatMap((nodeId, i) =>
    [0, 1, 2, 3, 4, 5].map((expert) => ({ layer: 0, expert, nodeId, weight: i })),
  )
  const table = routeTable(1, [{ layer: 0, experts }], held)
  const used = new RowGroups()
  const larger = Array.from({ length: 8 }, (_, i) => ({ layer: 0, expert: 0, nodeId: `n${i}`, weight: 1 }))
  groupRows(used, routedRows(0, [[0]]), routeTable(1, [{ layer: 0, experts }], larger), new Uint8Array(8), 1)
  const big = routedRows(
    0,
    Array.from({ length: 50 }, (_, row) => [row % 5, 5]),
  )
  groupRows(used, big, table, new Uint8Array(4), 3)
  const small = routedRows(0, [
    [0, 4],
    [1, 4],
    [4, 5],
  ])
  groupRows(used, small, table, new Uint8Array(4), 9)
  const fresh = new RowGroups()
  const again = routedRows(0, [
    [0, 4],
    [1, 4],
    [4, 5],
  ])
  groupRows(fresh, again, table, new Uint8Array(4), 9)
  expect(again.outputRows).toEqual(small.outputRows)
  expect(Array.from(used.entryExpert.subarray(0, used.entryCount))).toEqual(
    Array.from(fresh.entryExpert.subarray(0, fresh.entryCount)),
  )
})

test.each([
  { copy: { layer: 0, expert: 6, nodeId: 'a', weight: 1 }, message: 'no expert 6 in layer 0' },
  { copy: { layer: 1, expert: 0, nodeId: 'a', weight: 1 }, message: 'no expert 0 in layer 1' },
  { copy: { layer: 0, expert: 0, nodeId: 'a', weight: -1 }, message: 'weight -1' },
])('a table of $message is refused', ({ copy, message }) => {
  expect(() => routeTable(1, [{ layer: 0, experts }], [copy])).toThrow(message)
})

test('a row for an expert that does not exist is refused', () => {
  expect(() => group([[6]], [])).toThrow('layer 0 has no expert 6')
})
