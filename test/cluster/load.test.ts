import { expect, test } from 'vitest'
import { LoadMeter, mergeLoads } from '../../services/cluster/load.ts'

const layers = [
  { layer: 1, experts: 2 },
  { layer: 5, experts: 3 },
]

/** One update a second; `rates[second]` rows are added to expert 0 of layer 5. */
function metered(rates: readonly number[]): number {
  const meter = new LoadMeter(layers)
  const rows = new Map(layers.map(({ layer, experts }) => [layer, new Float64Array(experts)]))
  const rowsOf = (layer: number) => rows.get(layer) ?? new Float64Array()
  meter.update(0, rowsOf)
  rates.forEach((rate, second) => {
    const own = rowsOf(5)
    own[0] = (own[0] ?? 0) + rate
    meter.update((second + 1) * 1000, rowsOf)
  })
  return meter.published().layers.find(({ layer }) => layer === 5)?.rowsPerSecond[0] ?? Number.NaN
}

test('a steady load is measured as what it is', () => {
  expect(metered(new Array(60).fill(100))).toBeCloseTo(100, 1)
})

test('a load that ended is forgotten within seconds', () => {
  expect(metered([...new Array(60).fill(100), ...new Array(20).fill(0)])).toBeLessThan(2)
})

test('rows from before the first look are not load', () => {
  const meter = new LoadMeter(layers)
  const rowsOf = (layer: number) => new Float64Array(layer === 1 ? 2 : 3).fill(1e9)
  meter.update(0, rowsOf)
  meter.update(1000, rowsOf)
  expect(meter.published().layers.flatMap(({ rowsPerSecond }) => rowsPerSecond)).toEqual([0, 0, 0, 0, 0])
})

test('loads of several coordinators add up', () => {
  const merged = mergeLoads(
    new Map([
      ['c1', { layers: [{ layer: 5, rowsPerSecond: [1, 2, 3] }] }],
      [
        'c2',
        {
          layers: [
            { layer: 5, rowsPerSecond: [10, 0, 0.5] },
            { layer: 1, rowsPerSecond: [7, 7] },
          ],
        },
      ],
    ]),
  )
  expect([...(merged.get(5) ?? [])]).toEqual([11, 2, 3.5])
  expect([...(merged.get(1) ?? [])]).toEqual([7, 7])
})
