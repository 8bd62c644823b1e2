import { countHeld } from '../cluster/held.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { ExpertHost } from './host.ts'
import type { NodeLoad } from './load-gauge.ts'

export type ExpertWork = { rows: number; calls: number; waitedMs: number }

export type ExpertMetricsSource = {
  host: Pick<ExpertHost, 'ranks' | 'held' | 'usedBytes' | 'computedMs' | 'runtimeMs'>
  /** Since the start. */
  work: () => ExpertWork
  load: () => Pick<NodeLoad, 'busy' | 'queueMs'>
  /** What shards may take; 0: no limit is set. */
  memoryBytes: number
  /** Of files of shards; null where there is no cache. */
  cacheBytes: (() => number) | null
}

/** What an expert node tells Prometheus, all of it read from counters that are kept anyway. */
export function addExpertMetrics(metrics: Metrics, source: ExpertMetricsSource): void {
  const { host, work, load, memoryBytes, cacheBytes } = source
  metrics.counter('moesh_expert_rows_total', 'Rows computed.', () => work().rows)
  metrics.counter('moesh_expert_calls_total', 'Calls computed.', () => work().calls)
  metrics.counter('moesh_expert_wait_seconds_total', 'What calls waited here before they were computed.', () => {
    return work().waitedMs / 1000
  })
  metrics.counter('moesh_expert_compute_seconds_total', 'Computing time, all ranks together.', () => {
    return host.computedMs() / 1000
  })
  metrics.counter('moesh_expert_runtime_seconds_total', 'Of that, time inside ONNX Runtime.', () => {
    return host.runtimeMs() / 1000
  })
  metrics.gauge('moesh_expert_busy_ratio', 'Share of the time that ranks compute, mean of some seconds.', () => {
    return load().busy
  })
  metrics.gauge('moesh_expert_queue_seconds', 'What a call waits before it is computed, mean of some seconds.', () => {
    return load().queueMs / 1000
  })
  metrics.gauge('moesh_expert_ranks', 'Threads or devices that compute.', () => host.ranks)
  metrics.gauge('moesh_expert_shards', 'Experts held and computing.', () => countHeld(host.held()))
  metrics.gauge('moesh_expert_shard_bytes', 'What shards take.', () => host.usedBytes())
  if (memoryBytes > 0) metrics.gauge('moesh_expert_memory_bytes', 'What shards may take.', () => memoryBytes)
  if (cacheBytes !== null) metrics.gauge('moesh_expert_cache_bytes', 'Files of shards on disk.', cacheBytes)
}
