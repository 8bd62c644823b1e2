import type { ServerWritableStream, UntypedServiceImplementation } from '@grpc/grpc-js'
import { asMoeshError, MoeshError } from '../../config/errors.ts'
import { statusEveryMs, watcherEventsMax, watchersMax } from '../../config/limits.ts'
import type { ClusterEvent, ClusterStatus, ClusterView, RebalanceReport } from '../cluster-view.ts'
import { type ReportDefect, toServiceError, unary } from './failure.ts'
import { getStatusRequest, nodeRequest, readRequest, rebalanceRequest, watchEventsRequest } from './wire.ts'

type WatchCall = ServerWritableStream<unknown, object>

/** moesh.v1.Cluster: the view's facts as messages. */
export class ClusterService {
  readonly #view: ClusterView
  readonly #report: ReportDefect
  readonly #watchers = new Set<WatchCall>()

  constructor(view: ClusterView, report: ReportDefect) {
    this.#view = view
    this.#report = report
  }

  get handlers(): UntypedServiceImplementation {
    const view = this.#view
    return {
      GetStatus: unary('GetStatus', this.#report, async (message) => {
        const { expert_load: expertLoad } = readRequest(getStatusRequest, message)
        return statusMessage(await view.getStatus({ expertLoad }))
      }),
      WatchStatus: (call: WatchCall) => this.#watch(call, 'WatchStatus', () => this.#watchStatus(call)),
      WatchEvents: (call: WatchCall) => this.#watch(call, 'WatchEvents', () => this.#watchEvents(call)),
      Drain: unary('Drain', this.#report, (message) => view.drain(readRequest(nodeRequest, message).node)),
      Undrain: unary('Undrain', this.#report, async (message) => {
        await view.undrain(readRequest(nodeRequest, message).node)
        return {}
      }),
      Rebalance: unary('Rebalance', this.#report, async (message) => {
        const { dry_run: dryRun } = readRequest(rebalanceRequest, message)
        return rebalanceMessage(await view.rebalance({ dryRun }))
      }),
    }
  }

  /** Ends all watches: they would hold up a shutdown for ever. */
  close(): void {
    for (const call of this.#watchers) {
      call.emit('error', toServiceError(new MoeshError('SHUTTING_DOWN', 'this coordinator is shutting down')))
    }
    this.#watchers.clear()
  }

  #watch(call: WatchCall, method: string, start: () => Promise<void> | void): void {
    const isFull = this.#watchers.size >= watchersMax
    if (!isFull) this.#watchers.add(call)
    call.on('cancelled', () => this.#watchers.delete(call))
    Promise.resolve()
      .then(() => {
        if (isFull) throw new MoeshError('QUEUE_FULL', `${watchersMax} watchers are connected, which is the limit`)
        return start()
      })
      .catch((thrown: unknown) => {
        const error = asMoeshError(thrown)
        if (error.code === 'INTERNAL') this.#report(error, method)
        if (this.#watchers.delete(call) || isFull) call.emit('error', toServiceError(error))
      })
  }

  async #watchStatus(call: WatchCall): Promise<void> {
    const { expert_load: expertLoad } = readRequest(getStatusRequest, call.request)
    let last = ''
    while (this.#watchers.has(call)) {
      const message = statusMessage(await this.#view.getStatus({ expertLoad }))
      const text = JSON.stringify(message)
      if (text !== last && this.#watchers.has(call)) {
        last = text
        // A slow reader gets the next status, not all that it missed.
        await new Promise<void>((resolve) => {
          call.once('cancelled', () => resolve())
          call.write(message, () => resolve())
        })
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, statusEveryMs)
        call.once('cancelled', () => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }

  #watchEvents(call: WatchCall): void {
    const { last } = readRequest(watchEventsRequest, call.request)
    let unsent = 0
    const stop = this.#view.watchEvents(Math.min(last, watcherEventsMax), (event) => {
      if (!this.#watchers.has(call)) return
      if (++unsent > watcherEventsMax) {
        stop()
        this.#watchers.delete(call)
        const error = new MoeshError('CLIENT_SLOW', `${watcherEventsMax} events wait to be read`, 'watch again')
        call.emit('error', toServiceError(error))
        return
      }
      call.write(eventMessage(event), () => {
        unsent--
      })
    })
    call.on('cancelled', stop)
  }
}

function statusMessage(status: ClusterStatus): object {
  return {
    cluster: status.cluster,
    model_digest: status.modelDigest,
    model: status.model,
    epoch: status.epoch,
    leader: status.leader,
    nodes: status.nodes.map((node) => ({
      id: node.id,
      role: node.role,
      state: node.state,
      address: node.address,
      zone: node.zone,
      memory_bytes: node.memoryBytes,
      used_bytes: node.usedBytes,
      ranks: node.ranks,
      shards: node.shards,
      provider: node.provider,
      numerics: node.numerics,
      rows_per_second: node.rowsPerSecond,
      dispatch_p50_seconds: node.dispatchP50Ms / 1000,
      dispatch_p99_seconds: node.dispatchP99Ms / 1000,
      version: node.version,
      reason: node.reason,
    })),
    min_replicas: status.minReplicas,
    uncovered: status.uncovered,
    under_replicated: status.underReplicated,
    balancedness: status.balancedness,
    store: {
      kind: status.store.kind,
      reachable: status.store.reachable,
      round_trip_seconds: status.store.roundTripMs / 1000,
    },
    experts: status.experts.map(({ layer, expert, rowsPerSecond, nodes }) => ({
      layer,
      expert,
      rows_per_second: rowsPerSecond,
      nodes,
    })),
    running_requests: status.runningRequests,
    queued_requests: status.queuedRequests,
    tokens_per_second: status.tokensPerSecond,
  }
}

function eventMessage({ timeUnixMs, kind, node, text, fields }: ClusterEvent): object {
  const entries = Object.entries(fields).map(([key, value]) => ({ key, value }))
  return { time_unix_ms: timeUnixMs, kind, node, text, fields: entries }
}

function rebalanceMessage(report: RebalanceReport): object {
  return {
    moves: report.moves,
    balancedness_before: report.balancednessBefore,
    balancedness_after: report.balancednessAfter,
    bytes: report.bytes,
    epoch: report.epoch,
  }
}
