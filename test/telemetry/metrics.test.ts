import { request } from 'node:http'
import { afterEach, expect, test } from 'vitest'
import { geometricBounds, Histogram, quantile } from '../../services/telemetry/histogram.ts'
import { Metrics } from '../../services/telemetry/metrics.ts'
import { startMetricsPort } from '../../services/telemetry/metrics-port.ts'
import { readMetrics } from '../support/metrics.ts'

let port: Awaited<ReturnType<typeof startMetricsPort>> | null = null
afterEach(() => port?.close())

test('a histogram counts a value at the first bound that is not below it', () => {
  const histogram = new Histogram([1, 2, 4])
  for (const value of [0, 1, 1.5, 2, 3, 4, 5, 1e9]) histogram.record(value)
  expect([...histogram.counts]).toEqual([2, 2, 2, 2])
  expect(histogram.sum).toBe(16.5 + 1e9)
})

test('quantiles lie within the bucket that holds them', () => {
  const histogram = new Histogram(geometricBounds(0.001, 2 ** (1 / 16), 320))
  for (let value = 1; value <= 1000; value++) histogram.record(value / 1000)
  const { bounds, counts } = histogram
  const buckets = bounds.map((upper, index) => ({ lower: bounds[index - 1] ?? 0, upper, count: counts[index] ?? 0 }))
  for (const share of [0.1, 0.5, 0.99]) {
    const found = quantile(buckets, share) ?? Number.NaN
    expect(found / share).toBeGreaterThan(2 ** (-1 / 16))
    expect(found / share).toBeLessThan(2 ** (1 / 16))
  }
  expect(quantile([], 0.5)).toBeNull()
  expect(quantile([{ upper: 1, count: 0 }], 0.5)).toBeNull()
})

test('metrics are read when they are asked for, and written as Prometheus reads them', async () => {
  const metrics = new Metrics()
  let rows = 1
  const seconds = new Histogram([0.5, 1])
  metrics.counter('moesh_rows_total', 'Rows.', () => rows)
  metrics.gauge('moesh_nodes', 'Nodes.', () => [{ labels: { id: 'a"b\n' }, value: 2 }])
  metrics.histogram('moesh_seconds', 'Time.', seconds)
  rows = 7
  for (const value of [0.25, 0.75, 3]) seconds.record(value)
  expect(await metrics.text()).toBe(`# HELP moesh_rows_total Rows.
# TYPE moesh_rows_total counter
moesh_rows_total 7

# HELP moesh_nodes Nodes.
# TYPE moesh_nodes gauge
moesh_nodes{id="a\\"b\\n"} 2

# HELP moesh_seconds Time.
# TYPE moesh_seconds histogram
moesh_seconds_bucket{le="0.5"} 1
moesh_seconds_bucket{le="1"} 2
moesh_seconds_bucket{le="+Inf"} 3
moesh_seconds_sum 4
moesh_seconds_count 3
`)
})

test('the port answers GET /metrics and nothing else', async () => {
  const metrics = new Metrics()
  metrics.gauge('moesh_x', 'X.', () => 4)
  let isStarted = false
  port = await startMetricsPort('127.0.0.1:0', () => (isStarted ? metrics : null))
  const { address } = port
  const asked = async (method: string, path: string) => (await fetch(`http://${address}${path}`, { method })).status
  expect(await asked('GET', '/metrics')).toBe(503)
  isStarted = true
  expect(await readMetrics(address)).toEqual(new Map([['moesh_x', 4]]))
  for (const [method, path, status] of [
    ['GET', '/metrics?name=x', 200],
    ['POST', '/metrics', 405],
    ['DELETE', '/metrics', 405],
    ['GET', '/', 404],
    ['GET', '/metrics/../x', 404],
    ['GET', '/debug', 404],
  ] as const) {
    expect(await asked(method, path), `${method} ${path}`).toBe(status)
  }
  // More than it takes in headers.
  const refused = await new Promise((resolve) => {
    const headers = { x: 'y'.repeat(20_000) }
    const call = request(`http://${address}/metrics`, { headers }, ({ statusCode }) => resolve(statusCode))
    call.on('error', resolve).end()
  })
  expect(refused).toBe(431)
  expect(await asked('GET', '/metrics')).toBe(200)
})

test('a metric that cannot be read costs that answer, not the process', async () => {
  const metrics = new Metrics()
  metrics.gauge('moesh_x', 'X.', () => {
    throw new Error('gone')
  })
  port = await startMetricsPort('127.0.0.1:0', () => metrics)
  await expect(readMetrics(port.address)).rejects.toThrow()
  await expect(readMetrics(port.address)).rejects.toThrow()
})
