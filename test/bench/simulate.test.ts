import { expect, test } from 'vitest'
import { openSimulatedCluster } from '../../bench/simulate/cluster.ts'
import { callMs, fitCost } from '../../bench/simulate/cost.ts'
import { runLoad } from '../../bench/simulate/load.ts'
import { readOptions } from '../../bench/simulate/options.ts'
import { ZipfRouter } from '../../bench/simulate/routing.ts'
import { SleepingHost } from '../../bench/simulate/sleeping-host.ts'
import { LatencyHistogram } from '../../services/dispatch/latency.ts'
import { createOutputBuffer, createRowBuffer } from '../../services/dispatch/rows.ts'
import { small } from './small-shape.ts'

const cost = { perCallMs: 0.1, perExpertMs: 0.05, perRowMs: 0.01 }

test.each([
  { delay: null, why: 'dialled directly' },
  { delay: { jitterMs: 1 }, why: 'through proxies with delay and jitter' },
])('two sleeping nodes answer every row: $why', async ({ delay }) => {
  const cluster = await openSimulatedCluster({
    shape: small,
    format: 'int8',
    cost,
    nodes: 2,
    processes: 2,
    minReplicas: 1,
    loads: null,
    delay,
    seed: 1,
  })
  try {
    if (delay) await cluster.setRoundTripMs(2)
    const sequences = 3
    const result = await runLoad(cluster, {
      sequences,
      router: new ZipfRouter(small, 0, 1),
      warmUp: { steps: 2, seconds: 0 },
      measured: { steps: 10, seconds: 0 },
    })
    const { layers, expertsPerToken } = small
    // `runLoad` itself looks at every answer: each must come from the expert that was asked.
    expect(result).toMatchObject({
      steps: 10,
      dispatches: 10 * layers,
      pairs: 10 * layers * sequences * expertsPerToken,
    })
    const { nodes } = await cluster.stats()
    expect(nodes.map(({ id }) => id).sort()).toEqual(['node-000', 'node-001'])
    const rows = nodes.reduce((sum, node) => sum + node.rows, 0)
    // With the warm-up; rows that were late on a busy machine, and audits, come on top.
    expect(rows).toBeGreaterThanOrEqual(12 * layers * sequences * expertsPerToken)
    for (const node of nodes) {
      expect(node.calls).toBeGreaterThan(0)
      const least = node.calls * (cost.perCallMs + cost.perExpertMs) + node.rows * cost.perRowMs
      expect(node.computedMs).toBeGreaterThanOrEqual(least - 1e-6)
    }
  } finally {
    await cluster.close()
  }
})

test('a host sleeps for one call after the other, and refuses what it does not hold', async () => {
  // Alarms that ring at once, and say when they should have.
  const asked: number[] = []
  const sleeper = { until: async (dueMs: number) => asked[asked.push(dueMs) - 1] ?? 0 }
  const held = new Map([[1, new Set([2, 5])]])
  const late = new LatencyHistogram()
  const host = new SleepingHost({
    cost: { perCallMs: 1e6, perExpertMs: 0, perRowMs: 0 },
    sleeper,
    hidden: 4,
    held,
    late,
  })
  const rows = createRowBuffer('u8x2', 4, 1)
  const outputs = createOutputBuffer(4, 3)
  const call = (experts: number[]) =>
    host.call({
      layer: 1,
      experts: Int32Array.from(experts),
      counts: Int32Array.from(experts, () => 1),
      rowIndices: new Int32Array(experts.length),
      rows,
      outputs,
      outputStart: 1,
    })
  expect(await Promise.all([call([2, 5]), call([5])])).toEqual([{ computeMs: 1e6 }, { computeMs: 1e6 }])
  expect((asked[1] ?? 0) - (asked[0] ?? 0)).toBeCloseTo(1e6, 3)
  expect(Array.from(outputs.data)).toEqual([0, 0, 0, 0, 65_542, 0, 0, 0, 65_542, 0, 0, 0])
  await expect(call([3])).rejects.toMatchObject({ code: 'EXPERT_NOT_HELD' })
  expect(host.computedMs()).toBe(2e6)
})

test.each([
  { perCallMs: 0.3, perExpertMs: 0.4, perRowMs: 0.07, why: 'all three' },
  { perCallMs: 0, perExpertMs: 0.4, perRowMs: 0.07, why: 'nothing a call' },
  { perCallMs: 1, perExpertMs: 0, perRowMs: 0.5, why: 'nothing an expert' },
])('the fit finds the costs that samples were made from: $why', ({ why: _, ...made }) => {
  const sizes = [1, 2, 4, 8].flatMap((experts) => [1, 3, 9].map((each) => ({ experts, rows: experts * each })))
  const fitted = fitCost(sizes.map((size) => ({ ...size, ms: callMs(made, size.experts, size.rows) })))
  expect(fitted.perCallMs).toBeCloseTo(made.perCallMs, 6)
  expect(fitted.perExpertMs).toBeCloseTo(made.perExpertMs, 6)
  expect(fitted.perRowMs).toBeCloseTo(made.perRowMs, 6)
})

test('rows want different experts, in order, and more often the popular ones', () => {
  const share = (exponent: number) => {
    const router = new ZipfRouter(small, exponent, 1)
    const ids = router.draw(0, 500)
    for (let row = 0; row < 500; row++) {
      const [first = 0, second = 0] = ids.subarray(row * 2, row * 2 + 2)
      expect(first).toBeLessThan(second)
    }
    return Math.max(...router.loads(0, 4000)) / 4000
  }
  expect(share(0)).toBeLessThan(0.3)
  expect(share(1.5)).toBeGreaterThan(0.7)
})

test.each([
  ['--nodes', '0'],
  ['--nodes', '1,,2'],
  ['--skews', 'x'],
  ['--sweep', 'nobody'],
  ['--seconds', '-1'],
])('a wrong flag is named: %s %s', (flag, value) => {
  expect(() => readOptions([`${flag}=${value}`])).toThrow(flag)
})
