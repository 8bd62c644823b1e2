import fc from 'fast-check'
import { expect, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import type { AuditFinding } from '../../services/dispatch/audit.ts'
import { Cancellation } from '../../services/dispatch/cancellation.ts'
import { createDispatcher, type DispatcherOptions } from '../../services/dispatch/dispatcher.ts'
import { routeTable } from '../../services/dispatch/route.ts'
import { hidden, routedRows, wrongPairs } from './experts.ts'
import { FakeClock, settle } from './fake-clock.ts'
import { FakeNode } from './fake-nodes.ts'

const layers = [
  { layer: 0, experts: 4 },
  { layer: 1, experts: 4 },
]

/** Nodes by name; `homes` says which experts of both layers each one holds. */
function cluster(homes: Record<string, number[]>, options: Partial<DispatcherOptions> = {}) {
  const clock = new FakeClock()
  const nodes = Object.fromEntries(Object.keys(homes).map((nodeId) => [nodeId, new FakeNode(nodeId)]))
  const transports = new Map(Object.entries(nodes))
  const log: string[] = []
  const table = (held: Record<string, number[]>, epoch = 1) =>
    routeTable(
      epoch,
      layers,
      Object.entries(held).flatMap(([nodeId, experts]) =>
        experts.flatMap((expert) => layers.map(({ layer }) => ({ layer, expert, nodeId, weight: 1 }))),
      ),
    )
  const dispatcher = createDispatcher({
    hidden,
    encoding: 'f32',
    routes: table(homes),
    transports,
    clock,
    auditShare: 0,
    hedge: { floorMs: 20, coldMs: 100 },
    onUncovered: (layer, expert) => log.push(`uncovered L${layer}/E${expert}`),
    onNodeLate: (nodeId, isLate) => log.push(`${nodeId} ${isLate ? 'late' : 'answers'}`),
    onFailure: (nodeId, error) => log.push(`${nodeId} ${error.code}`),
    ...options,
  })
  const node = (nodeId: string): FakeNode => {
    const found = nodes[nodeId]
    if (!found) throw new Error(`no node ${nodeId}`)
    return found
  }
  return { clock, node, transports, dispatcher, table, log }
}

const someRows = [
  [0, 1],
  [1, 3],
  [0, 2],
  [2, 3],
]

test('each node gets one call with its experts, and every output comes back', async () => {
  const { dispatcher, node } = cluster({ a: [0, 1], b: [2, 3] })
  const routed = routedRows(1, someRows)
  expect(await dispatcher.dispatch(routed)).toEqual({ retriedRows: 0, computeMs: 1 })
  expect(wrongPairs(routed)).toEqual([])
  expect(node('a').calls.map(({ experts }) => [...experts])).toEqual([[0, 1]])
  expect(node('b').calls.map(({ experts }) => [...experts])).toEqual([[2, 3]])
  expect([...dispatcher.expertRows(1)]).toEqual([2, 2, 2, 2])
})

test('no rows need no node', async () => {
  const { dispatcher } = cluster({ a: [0] })
  expect(await dispatcher.dispatch(routedRows(0, []))).toEqual({ retriedRows: 0, computeMs: 0 })
})

test('a late call is repeated on the other copy and the first answer wins', async () => {
  const { dispatcher, node, clock, log } = cluster({ a: [0, 1], b: [0, 1] })
  node('a').behaviour = 'hold'
  const routed = routedRows(
    0,
    someRows.map(() => [0, 1]),
  )
  const done = dispatcher.dispatch(routed)
  await clock.advance(99)
  expect(log).toEqual([])
  await clock.advance(1)
  expect((await done).retriedRows).toBeGreaterThan(0)
  expect(log).toEqual(['a late'])
  expect(wrongPairs(routed)).toEqual([])
  // What a would still say of it is nobody's business now; only a probe waits.
  expect(node('a').open.map(({ call }) => call.rowIndices.length)).toEqual([1])
  dispatcher.close()
  await settle()
  expect(node('a').open).toEqual([])
  expect(clock.timers).toBe(0)
})

test('the late node itself may win', async () => {
  const { dispatcher, node, clock, log } = cluster({ a: [0, 1], b: [0, 1] })
  node('a').behaviour = 'hold'
  const routed = routedRows(0, [[0, 1]])
  const first = dispatcher.dispatch(routed)
  node('b').behaviour = 'hold'
  await clock.advance(100)
  node('a').answerAll()
  await settle()
  node('b').answerAll()
  await first
  expect(wrongPairs(routed)).toEqual([])
  expect(log).toContain('a answers')
})

test('rows go round a late node until it answers a probe, with traffic or without', async () => {
  const { dispatcher, node, clock, log } = cluster({ a: [0, 1, 2, 3], b: [0, 1, 2, 3] })
  node('a').behaviour = 'hold'
  const first = dispatcher.dispatch(routedRows(0, someRows))
  await clock.advance(100)
  await first
  const callsBefore = node('a').calls.length
  for (let i = 0; i < 5; i++) await dispatcher.dispatch(routedRows(1, someRows))
  expect(node('a').calls.length).toBe(callsBefore)
  // A probe is given up after two seconds, and the next one follows.
  await clock.advance(2100)
  expect(node('a').calls.length).toBe(callsBefore + 1)
  expect(node('a').calls.at(-1)?.rowIndices.length).toBe(1)
  expect(dispatcher.nodeStats('a').isLate).toBe(true)
  node('a').behaviour = 'answer'
  node('a').answerAll()
  await settle()
  expect(log).toEqual(['a late', 'a answers'])
  await dispatcher.dispatch(routedRows(1, someRows))
  expect(node('a').calls.at(-1)?.rowIndices.length).toBeGreaterThan(1)
  expect(clock.timers).toBe(0)
})

test('where all copies are late, the one that was answering last is asked first', async () => {
  const { dispatcher, node, clock } = cluster({ a: [0], b: [0], c: [1] })
  node('a').behaviour = 'hold'
  node('b').behaviour = 'hold'
  // Fewer would stay on one copy.
  const rows = Array(16).fill([0])
  const cancellation = new Cancellation()
  const first = dispatcher.dispatch(routedRows(0, rows), cancellation)
  first.catch(() => {})
  // a and b get half of the rows each and become late; only b answers its probe, and becomes late again later.
  await clock.advance(100)
  cancellation.cancel()
  await settle()
  for (const entry of node('b').open) entry.answer()
  await clock.advance(300)
  const asked = node('a').calls.length
  node('b').behaviour = 'hold'
  const second = dispatcher.dispatch(routedRows(1, rows))
  await clock.advance(100)
  expect(dispatcher.nodeStats('b').isLate).toBe(true)
  const third = dispatcher.dispatch(routedRows(0, rows))
  expect(node('b').calls.at(-1)?.layer).toBe(0)
  expect(node('b').calls.at(-1)?.rowIndices.length).toBe(16)
  expect(
    node('a')
      .calls.slice(asked)
      .filter(({ layer }) => layer === 0).length,
  ).toBe(0)
  node('a').behaviour = 'answer'
  node('b').behaviour = 'answer'
  node('a').answerAll()
  node('b').answerAll()
  await Promise.all([second, third])
})

test('the limit follows the measured p99, and one slow node does not excuse itself', async () => {
  const { dispatcher, node, clock, log } = cluster({ a: [0, 1], b: [2], c: [3] })
  for (const nodeId of ['a', 'b', 'c']) node(nodeId).behaviour = 'hold'
  for (let i = 0; i < 70; i++) {
    const done = dispatcher.dispatch(routedRows(0, someRows))
    await clock.advance(10)
    node('b').answerAll()
    node('c').answerAll()
    await clock.advance(30)
    node('a').answerAll()
    await done
  }
  expect(dispatcher.nodeStats('b').p99Ms).toBeGreaterThanOrEqual(10)
  expect(dispatcher.nodeStats('b').p99Ms).toBeLessThan(12)
  expect(dispatcher.nodeStats('a').p50Ms).toBeGreaterThanOrEqual(40)
  log.length = 0
  const done = dispatcher.dispatch(routedRows(0, someRows))
  await clock.advance(25)
  expect(log).toEqual([])
  await clock.advance(15)
  expect(log).toEqual(['a late', 'b late', 'c late'])
  for (const nodeId of ['a', 'b', 'c']) node(nodeId).answerAll()
  await done
})

test('a lost node is replaced at once', async () => {
  const { dispatcher, node, log } = cluster({ a: [0, 1, 2, 3], b: [0, 1], c: [2, 3] })
  node('a').behaviour = 'lost'
  const routed = routedRows(
    0,
    Array.from({ length: 9 }, () => [0, 1, 2, 3]),
  )
  const { retriedRows } = await dispatcher.dispatch(routed)
  expect(retriedRows).toBeGreaterThan(10)
  expect(wrongPairs(routed)).toEqual([])
  expect(log).toEqual(['a late', 'a NODE_LOST'])
  expect(dispatcher.stats().retriedRows).toBe(retriedRows)
})

test('a node without a connection counts as lost', async () => {
  const { dispatcher, transports, log } = cluster({ a: [0, 1, 2, 3], b: [0, 1, 2, 3] })
  transports.delete('a')
  const routed = routedRows(0, someRows)
  await dispatcher.dispatch(routed)
  expect(wrongPairs(routed)).toEqual([])
  expect(log).toEqual(['a late', 'a NODE_LOST'])
})

test('what a node refuses goes elsewhere, and what it holds of it stays', async () => {
  const { dispatcher, node, log } = cluster({ a: [0, 2], b: [1, 2, 3] })
  node('a').missing.add(2)
  const routed = routedRows(0, [
    [0, 2],
    [1, 2],
    [2, 3],
  ])
  await dispatcher.dispatch(routed)
  expect(wrongPairs(routed)).toEqual([])
  expect(log).toEqual(['a EXPERT_NOT_HELD'])
  expect(Array.from(node('a').calls.at(-1)?.experts ?? [])).toEqual([0])
})

test('rows wait for an expert without a copy until the routes name one', async () => {
  const { dispatcher, table, log, node } = cluster({ a: [0, 1], b: [3] })
  const routed = routedRows(1, someRows)
  const done = dispatcher.dispatch(routed)
  await settle()
  expect(log).toEqual(['uncovered L1/E2'])
  dispatcher.setRoutes(table({ a: [0, 1], b: [2, 3] }, 2))
  expect((await done).retriedRows).toBe(2)
  expect(wrongPairs(routed)).toEqual([])
  expect(node('b').calls.length).toBe(2)
})

test('rows wait for the only copy while it is away, trying again and again', async () => {
  const { dispatcher, node, clock, log } = cluster({ a: [0, 1, 2, 3] })
  node('a').behaviour = 'lost'
  const routed = routedRows(0, [[0, 1]])
  const done = dispatcher.dispatch(routed)
  await clock.advance(5000)
  expect(log.filter((line) => line.startsWith('uncovered'))).toEqual(['uncovered L0/E0', 'uncovered L0/E1'])
  // The probes of one row aside.
  expect(node('a').calls.filter(({ rowIndices }) => rowIndices.length > 1).length).toBeLessThan(20)
  node('a').behaviour = 'answer'
  await clock.advance(500)
  await done
  expect(wrongPairs(routed)).toEqual([])
  expect(clock.timers).toBe(0)
})

test('a hanging node that is the only home is reported, and another home ends the wait', async () => {
  const { dispatcher, node, clock, log, table } = cluster({ a: [0, 1], b: [2, 3] })
  node('a').behaviour = 'hold'
  const routed = routedRows(0, someRows)
  const done = dispatcher.dispatch(routed)
  await clock.advance(999)
  expect(log).toEqual(['a late'])
  await clock.advance(1)
  expect(log).toEqual(['a late', 'uncovered L0/E0', 'uncovered L0/E1'])
  dispatcher.setRoutes(table({ a: [0, 1], b: [0, 1, 2, 3] }, 2))
  await done
  expect(wrongPairs(routed)).toEqual([])
})

test('a cancelled dispatch ends, running or waiting, and leaves nothing behind', async () => {
  const { dispatcher, node, clock } = cluster({ a: [0, 1] })
  node('a').behaviour = 'hold'
  for (const expertIds of [[[0, 1]], [[0, 3]]]) {
    const cancellation = new Cancellation()
    const done = dispatcher.dispatch(routedRows(0, expertIds), cancellation)
    await settle()
    cancellation.cancel()
    await expect(done).rejects.toMatchObject({ code: 'CANCELLED' })
    expect(node('a').open).toEqual([])
    expect(clock.timers).toBe(0)
  }
  const cancelled = new Cancellation()
  cancelled.cancel()
  await expect(dispatcher.dispatch(routedRows(0, [[0, 1]]), cancelled)).rejects.toMatchObject({
    code: 'CANCELLED',
  })
  expect(dispatcher.stats().running).toBe(0)
})

test('a thread that was busy does not call its nodes late', async () => {
  const { dispatcher, node, log } = cluster({ a: [0, 1], b: [0, 1] }, { clock: stalledClock() })
  node('a').behaviour = 'hold'
  const done = dispatcher.dispatch(routedRows(0, [[0, 1]]))
  await settle()
  stall(500)
  node('a').answerAll()
  await done
  expect(log).toEqual([])
})

let stalledTimers: { work: () => void; cancelled: boolean }[] = []
let stalledNowMs = 0
function stalledClock() {
  stalledTimers = []
  stalledNowMs = 0
  return {
    nowMs: () => stalledNowMs,
    after: (_delayMs: number, work: () => void) => {
      const timer = { work, cancelled: false }
      stalledTimers.push(timer)
      return {
        cancel: () => {
          timer.cancelled = true
        },
      }
    },
  }
}
/** The event loop stood still for so long; now its timers run, before any socket is read. */
function stall(ms: number) {
  stalledNowMs += ms
  const due = stalledTimers
  stalledTimers = []
  for (const { work, cancelled } of due) if (!cancelled) work()
}

test('dispatches may run side by side', async () => {
  const { dispatcher, node } = cluster({ a: [0, 1], b: [2, 3] })
  node('a').behaviour = 'hold'
  node('b').behaviour = 'hold'
  const all = [0, 1, 2, 3].map((i) => routedRows(i % 2, someRows, i * 100))
  const done = all.map((routed) => dispatcher.dispatch(routed))
  node('b').answerAll()
  for (const entry of [...node('a').open].reverse()) entry.answer()
  await Promise.all(done)
  for (const routed of all) expect(wrongPairs(routed)).toEqual([])
})

test.each([
  { wrong: ['a'], homes: { a: [0], b: [0], c: [0] }, suspects: ['a'] },
  { wrong: ['b'], homes: { a: [0], b: [0], c: [0] }, suspects: ['b'] },
  { wrong: ['a'], homes: { a: [0], b: [0] }, suspects: ['a', 'b'] },
  { wrong: [], homes: { a: [0], b: [0], c: [0] }, suspects: null },
])('an audit with wrong rows from $wrong of $homes suspects $suspects', async ({ wrong, homes, suspects }) => {
  const findings: AuditFinding[] = []
  const { dispatcher, node } = cluster(homes as Record<string, number[]>, {
    auditShare: 1,
    onAudit: (finding) => findings.push(finding),
  })
  for (const nodeId of wrong) node(nodeId).behaviour = 'wrong'
  for (let i = 0; i < 3; i++) {
    await dispatcher.dispatch(routedRows(0, [[0]]))
    await settle()
  }
  expect(dispatcher.stats().audited).toBe(3)
  expect(new Set(findings.map((finding) => finding.suspects.toSorted().join()))).toEqual(
    new Set(suspects === null ? [] : [suspects.join()]),
  )
})

test("the coordinator's own computation decides an audit between two nodes", async () => {
  const own = new FakeNode('own')
  const findings: AuditFinding[] = []
  const { dispatcher, node } = cluster(
    { a: [0], b: [0] },
    { auditShare: 1, onAudit: (finding) => findings.push(finding), reference: () => own },
  )
  node('b').behaviour = 'wrong'
  await dispatcher.dispatch(routedRows(0, [[0]]))
  await settle()
  expect(findings).toMatchObject([{ layer: 0, expert: 0, suspects: ['b'] }])
})

test('about the asked share of the pairs is audited', async () => {
  let seed = 1
  const random = () => {
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed / 2147483648
  }
  const { dispatcher } = cluster({ a: [0, 1, 2, 3], b: [0, 1, 2, 3] }, { auditShare: 0.01, random })
  for (let i = 0; i < 2500; i++) await dispatcher.dispatch(routedRows(0, someRows))
  await settle()
  expect(dispatcher.stats().audited).toBeGreaterThan(150)
  expect(dispatcher.stats().audited).toBeLessThan(250)
})

/** What happens next in a random run. */
const step = fc.oneof(
  fc.record({ kind: fc.constant('answer' as const), which: fc.nat(20) }),
  fc.record({
    kind: fc.constant('fail' as const),
    which: fc.nat(20),
    code: fc.constantFrom('NODE_LOST' as const, 'EXPERT_NOT_HELD' as const, 'INTERNAL' as const),
  }),
  fc.record({ kind: fc.constant('time' as const), ms: fc.constantFrom(1, 30, 150, 1200) }),
  fc.record({ kind: fc.constant('routes' as const), without: fc.constantFrom('a', 'b', 'c', 'd', '') }),
)

test('whatever fails in whatever order, every output is right once some copy answers', async () => {
  const homes: Record<string, number[]> = { a: [0, 1], b: [1, 2, 3], c: [0, 3], d: [0, 1, 2, 3] }
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.subarray([0, 1, 2, 3], { minLength: 2, maxLength: 2 }), { minLength: 1, maxLength: 24 }),
      fc.array(step, { maxLength: 60 }),
      async (expertIds, steps) => {
        const { dispatcher, node, clock, table } = cluster(homes, { auditShare: 0.3 })
        const names = Object.keys(homes)
        for (const nodeId of names) node(nodeId).behaviour = 'hold'
        const all = [routedRows(0, expertIds), routedRows(1, expertIds, 50)]
        let left = all.length
        const done = all.map((routed) =>
          dispatcher.dispatch(routed).then(() => {
            left -= 1
            expect(wrongPairs(routed)).toEqual([])
            // The caller uses its buffers for something else now.
            routed.outputs.data.fill(-7)
          }),
        )
        for (const action of steps) {
          const open = names.flatMap((nodeId) => node(nodeId).open)
          if (action.kind === 'time') await clock.advance(action.ms)
          else if (action.kind === 'routes') {
            const left = Object.entries(homes).filter(([nodeId]) => nodeId !== action.without)
            dispatcher.setRoutes(table(Object.fromEntries(left)))
          } else if (action.kind === 'answer') open[action.which % open.length]?.answer()
          else open[action.which % open.length]?.fail(new MoeshError(action.code, 'as the test wants'))
          await settle()
        }
        node('d').behaviour = 'answer'
        dispatcher.setRoutes(table(homes))
        node('d').answerAll()
        for (let i = 0; i < 10 && left > 0; i++) await clock.advance(1000)
        expect(left).toBe(0)
        await Promise.all(done)
        for (const nodeId of names) node(nodeId).behaviour = 'answer'
        for (const nodeId of names) node(nodeId).answerAll()
        await clock.advance(5000)
        for (const routed of all) expect(routed.outputs.data.every((value) => value === -7)).toBe(true)
        expect(clock.timers).toBe(0)
      },
    ),
    { seed: 9, numRuns: 300 },
  )
})
