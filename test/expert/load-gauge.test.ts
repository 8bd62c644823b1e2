import { expect, test } from 'vitest'
import { LoadGauge } from '../../services/expert/load-gauge.ts'

/** A node of two ranks, read every second, that computes `busy` of both ranks' time in calls that wait `queueMs`. */
function run(gauge: LoadGauge, fromSeconds: number, seconds: number, busy: number, queueMs: number) {
  let load = { rowsPerSecond: 0, busy: 0, queueMs: 0 }
  for (let i = 1; i <= seconds; i++) {
    totals.rows += 300
    totals.calls += 10
    totals.waitedMs += 10 * queueMs
    totals.computedMs += 2000 * busy
    load = gauge.read((fromSeconds + i) * 1000, { ...totals })
  }
  return load
}
const totals = { rows: 0, calls: 0, waitedMs: 0, computedMs: 0 }

test('load is a recent mean: it rises within seconds, lasts over a pause, and is forgotten after many', () => {
  const gauge = new LoadGauge(2, 0)
  expect(run(gauge, 0, 30, 0.8, 20)).toEqual({
    rowsPerSecond: 300,
    busy: expect.closeTo(0.8, 2),
    queueMs: expect.closeTo(20, 0),
  })
  expect(gauge.read(31_000, { ...totals }).busy).toBeGreaterThan(0.6)
  const idle = gauge.read(90_000, { ...totals })
  expect(idle.rowsPerSecond).toBe(0)
  expect(idle.busy).toBeLessThan(0.01)
  expect(idle.queueMs).toBeLessThan(1)
})

test('a run that ends in a short interval does not make a node busier than all the time', () => {
  const gauge = new LoadGauge(1, 0)
  for (let i = 1; i < 60; i++) {
    const { busy } = gauge.read(i * 100, { rows: i, calls: i, waitedMs: 0, computedMs: i * 1000 })
    expect(busy).toBeLessThanOrEqual(1)
  }
})
