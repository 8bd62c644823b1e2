import { type Metric, Registry } from 'prom-client'
import type { Histogram } from './histogram.ts'

/** A number, or one for each set of labels. */
export type Reading = number | readonly { readonly labels: Readonly<Record<string, string>>; readonly value: number }[]

type Value = { value: number; labels: Readonly<Record<string, string>>; metricName?: string }

/**
 * What a process tells Prometheus. Nothing is counted here: each metric is read, when somebody asks, from counters that
 * the parts of the process keep anyway. Names: `moesh_`, the unit last, `_total` where it only grows.
 */
export class Metrics {
  readonly contentType = Registry.PROMETHEUS_CONTENT_TYPE
  readonly #registry = new Registry()

  /** Since the process's start; never less than before. */
  counter(name: string, help: string, read: () => Reading): void {
    this.#add(name, help, 'counter', () => values(read()))
  }

  gauge(name: string, help: string, read: () => Reading): void {
    this.#add(name, help, 'gauge', () => values(read()))
  }

  histogram(name: string, help: string, histogram: Histogram): void {
    this.#add(name, help, 'histogram', () => {
      const rows: Value[] = []
      let below = 0
      histogram.counts.forEach((count, index) => {
        below += count
        const le = index < histogram.bounds.length ? String(histogram.bounds[index]) : '+Inf'
        rows.push({ metricName: `${name}_bucket`, labels: { le }, value: below })
      })
      rows.push({ metricName: `${name}_sum`, labels: {}, value: histogram.sum })
      rows.push({ metricName: `${name}_count`, labels: {}, value: below })
      return rows
    })
  }

  /** In Prometheus' text format. */
  text(): Promise<string> {
    return this.#registry.metrics()
  }

  #add(name: string, help: string, type: 'counter' | 'gauge' | 'histogram', read: () => Value[]): void {
    // The registry asks a metric for no more than its name and this; its own classes keep values, and allocate for each.
    const metric = { name, get: async () => ({ name, help, type, values: read(), aggregator: 'sum' }) }
    this.#registry.registerMetric(metric as unknown as Metric)
  }
}

function values(reading: Reading): Value[] {
  return typeof reading === 'number' ? [{ value: reading, labels: {} }] : [...reading]
}

/** What every process tells of itself, by the names that dashboards know. */
export function addProcessMetrics(metrics: Metrics, labels: Readonly<Record<string, string>>): void {
  const startSeconds = Date.now() / 1000 - process.uptime()
  metrics.gauge('moesh_build_info', 'Always 1; the labels say what runs.', () => [{ labels, value: 1 }])
  metrics.counter('process_cpu_seconds_total', 'CPU time of all threads.', () => {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1e6
  })
  metrics.gauge('process_resident_memory_bytes', 'Resident memory.', () => process.memoryUsage.rss())
  metrics.gauge('process_start_time_seconds', 'Start of the process, Unix time.', () => startSeconds)
}
