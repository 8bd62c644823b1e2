import assert from 'node:assert/strict'
import { percentiles } from '../../services/cli/bench.ts'
import { createOutputBuffer, createRowBuffer, type OutputBuffer, rowEncoding } from '../../services/dispatch/rows.ts'
import type { RoutedRows } from '../../services/dispatch/transport.ts'
import type { SimulatedCluster, SimulatedStats } from './cluster.ts'
import { marker } from './model.ts'
import type { ZipfRouter } from './routing.ts'

/**
 * A coordinator's step loop with nothing but its dispatches: a step sends the rows of all sequences through one layer
 * after the other, and the next step begins when the last layer has answered. Attention, head and sampling take no time.
 */

export type LoadPlan = {
  /** Rows of a step: one a sequence. */
  sequences: number
  router: ZipfRouter
  /** Steps that warm up, at least, and for how long, at least. */
  warmUp: Until
  measured: Until
}
/** Goes on until both are reached. */
export type Until = { steps: number; seconds: number }

export type LoadResult = {
  sequences: number
  steps: number
  dispatches: number
  /** (row, expert) pairs that were sent; all of them were answered, by their experts. */
  pairs: number
  tokensPerSecond: number
  /** From rows to outputs, one layer. */
  dispatchMs: { p50: number; p90: number; p99: number }
  /** Of it, the slowest node's computing, p50; what is left is waiting, network and handling. */
  computeMsP50: number
  /** Calls for one dispatch, mean. */
  callsPerDispatch: number
  /** Rows that were sent again, because an answer was late. */
  retriedRows: number
  /** Rows of the busiest node / mean of the nodes; all layers together. */
  busiestNode: number
  /**
   * Cores' worth of computing, and what a dispatch takes of the coordinator's. `eventLoop`: share of the time that its
   * thread was busy, or waited for a core.
   */
  cpu: { coordinatorCores: number; coordinatorMsPerDispatch: number; nodesCores: number; eventLoop: number }
  /** How long after their time the nodes answered. */
  lateMs: { p50: number; p99: number }
}

/** Steps that are drawn beforehand and used in turn: drawing takes longer than dispatching. */
const drawnSteps = 24

export async function runLoad(cluster: SimulatedCluster, plan: LoadPlan): Promise<LoadResult> {
  const { sequences, router } = plan
  const { hidden, layers, expertsPerToken } = cluster.shape
  const encoding = rowEncoding(cluster.format)
  const rows = createRowBuffer(encoding, hidden, sequences)
  const outputs = createOutputBuffer(hidden, sequences * expertsPerToken)
  const outputRows = new Int32Array(sequences * expertsPerToken)
  const drawn = Array.from({ length: drawnSteps }, () =>
    Array.from(
      { length: layers },
      (_, layer): RoutedRows => ({
        layer,
        rowCount: sequences,
        expertsPerToken,
        expertIds: router.draw(layer, sequences),
        rows,
        outputs,
        outputRows,
      }),
    ),
  )
  const samples = { dispatchMs: [] as number[], computeMs: [] as number[], steps: 0, retriedRows: 0 }
  const step = async () => {
    for (const routed of drawn[samples.steps % drawnSteps] ?? []) {
      clearAnswers(outputs, hidden, outputRows.length)
      const startMs = performance.now()
      const report = await cluster.dispatcher.dispatch(routed)
      samples.dispatchMs.push(performance.now() - startMs)
      samples.computeMs.push(report.computeMs)
      samples.retriedRows += report.retriedRows
      checkAnswers(routed, hidden)
    }
    samples.steps++
  }
  await repeat(step, plan.warmUp)
  samples.dispatchMs.length = 0
  samples.computeMs.length = 0
  samples.steps = 0
  samples.retriedRows = 0
  // Asking the nodes counts for nobody.
  const nodesBefore = await cluster.stats()
  const before = readOwn()
  await repeat(step, plan.measured)
  const after = readOwn()
  const nodesAfter = await cluster.stats()
  const seconds = (after.atMs - before.atMs) / 1000
  const calls = difference(nodesBefore, nodesAfter, 'calls')
  const nodeRows = difference(nodesBefore, nodesAfter, 'rows')
  const rowsMean = sum(nodeRows) / nodeRows.length
  const dispatches = samples.dispatchMs.length
  return {
    sequences,
    steps: samples.steps,
    dispatches,
    pairs: dispatches * sequences * expertsPerToken,
    tokensPerSecond: (samples.steps * sequences) / seconds,
    dispatchMs: percentiles(samples.dispatchMs),
    computeMsP50: percentiles(samples.computeMs).p50,
    callsPerDispatch: sum(calls) / dispatches,
    retriedRows: samples.retriedRows,
    busiestNode: Math.max(...nodeRows) / rowsMean,
    cpu: {
      coordinatorCores: (after.cpuMs - before.cpuMs) / 1000 / seconds,
      coordinatorMsPerDispatch: (after.cpuMs - before.cpuMs) / dispatches,
      nodesCores: (nodesAfter.cpuMs - nodesBefore.cpuMs) / 1000 / seconds,
      eventLoop: performance.eventLoopUtilization(after.loop, before.loop).utilization,
    },
    lateMs: nodesAfter.lateMs,
  }
}

async function repeat(step: () => Promise<void>, { steps, seconds }: Until): Promise<void> {
  const untilMs = performance.now() + seconds * 1000
  for (let done = 0; done < steps || performance.now() < untilMs; done++) await step()
}

function readOwn() {
  const { user, system } = process.cpuUsage()
  return { cpuMs: (user + system) / 1000, loop: performance.eventLoopUtilization(), atMs: performance.now() }
}

function difference(before: SimulatedStats, after: SimulatedStats, what: 'calls' | 'rows'): number[] {
  const had = new Map(before.nodes.map((node) => [node.id, node[what]]))
  return after.nodes.map((node) => node[what] - (had.get(node.id) ?? 0))
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

function clearAnswers({ data }: OutputBuffer, hidden: number, pairs: number): void {
  for (let pair = 0; pair < pairs; pair++) data[pair * hidden] = 0
}

/** Every pair was answered by the expert that it asked for. */
function checkAnswers({ layer, expertIds, outputRows, outputs }: RoutedRows, hidden: number): void {
  for (const [pair, expert] of expertIds.entries()) {
    const answer = outputs.data[(outputRows[pair] ?? -1) * hidden]
    if (answer === marker(layer, expert)) continue
    assert.fail(`pair ${pair} of layer ${layer} has ${answer}, which is not what expert ${expert} answers`)
  }
}
