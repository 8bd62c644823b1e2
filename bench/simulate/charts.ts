import type { LineChart, Series } from '../../services/cli/plot.ts'
import type { SweepName } from './options.ts'
import type { Point } from './sweeps.ts'

/** Charts of a sweep: throughput, latency of a dispatch, and what explains them. */

type Take = (point: Point) => number

export function chartsOf(sweep: SweepName, points: readonly Point[], middle: number): LineChart[] {
  switch (sweep) {
    case 'nodes':
      return nodesCharts(points, middle)
    case 'round-trip':
      return roundTripCharts(points, middle)
    case 'skew':
      return skewCharts(points)
  }
}

function nodesCharts(points: readonly Point[], middle: number): LineChart[] {
  const xLabel = 'expert nodes'
  const x: Take = ({ nodes }) => nodes
  const atMiddle = points.filter(({ sequences }) => sequences === middle)
  return [
    { title: 'tokens/s, by sequences at once', xLabel, series: bySequences(points, x, tokensPerSecond) },
    {
      title: `one dispatch, ms: ${middle} sequences`,
      xLabel,
      series: [
        line('p50', atMiddle, x, ({ dispatchMs }) => dispatchMs.p50),
        line('p99', atMiddle, x, ({ dispatchMs }) => dispatchMs.p99),
        line('experts', atMiddle, x, ({ computeMsP50 }) => computeMsP50),
      ],
    },
    { title: "coordinator's thread, % busy", xLabel, series: bySequences(points, x, ({ cpu }) => 100 * cpu.eventLoop) },
  ]
}

function roundTripCharts(points: readonly Point[], middle: number): LineChart[] {
  const xLabel = 'added round trip, ms'
  const x: Take = ({ roundTripMs }) => roundTripMs ?? 0
  const steady = points.filter(({ jitterMs }) => jitterMs === 0)
  const atMiddle = steady.filter(({ sequences }) => sequences === middle)
  const jittery = points.filter(({ jitterMs }) => jitterMs > 0)
  const jitterMs = jittery[0]?.jitterMs ?? 0
  const kept: Take = ({ sequences, tokensPerSecond }) => {
    const without = steady.find((point) => point.sequences === sequences && point.roundTripMs === 0)
    return (100 * tokensPerSecond) / (without?.tokensPerSecond ?? Number.NaN)
  }
  return [
    { title: 'tokens/s, by sequences at once', xLabel, series: bySequences(steady, x, tokensPerSecond) },
    {
      title: `one dispatch, ms: ${middle} sequences`,
      xLabel,
      series: [
        line('p50', atMiddle, x, ({ dispatchMs }) => dispatchMs.p50),
        line('p99', atMiddle, x, ({ dispatchMs }) => dispatchMs.p99),
        line(`p50 ±${jitterMs}`, jittery, x, ({ dispatchMs }) => dispatchMs.p50),
        line(`p99 ±${jitterMs}`, jittery, x, ({ dispatchMs }) => dispatchMs.p99),
      ].filter((series) => series.points.length > 0),
    },
    { title: '% of the throughput without delay', xLabel, series: bySequences(steady, x, kept) },
  ]
}

function skewCharts(points: readonly Point[]): LineChart[] {
  const xLabel = "Zipf exponent of the experts' popularity"
  const x: Take = ({ skew }) => skew
  const most = Math.max(...points.map(({ sequences }) => sequences))
  const placed = (['by load', 'even'] as const).map((placement) => ({
    placement,
    points: points.filter((point) => point.placement === placement && point.sequences === most),
  }))
  const both = (take: Take) => placed.map(({ placement, points }) => line(placement, points, x, take))
  return [
    { title: `tokens/s: ${most} sequences, by placement`, xLabel, series: both(tokensPerSecond) },
    { title: 'one dispatch, ms, p50', xLabel, series: both(({ dispatchMs }) => dispatchMs.p50) },
    { title: "slowest node's computing, ms, p50", xLabel, series: both(({ computeMsP50 }) => computeMsP50) },
    { title: "busiest node's rows / mean", xLabel, series: both(({ busiestNode }) => busiestNode) },
  ]
}

const tokensPerSecond: Take = (point) => point.tokensPerSecond

function line(name: string, points: readonly Point[], x: Take, y: Take): Series {
  return { name, points: points.map((point) => ({ x: x(point), y: y(point) })) }
}

function bySequences(points: readonly Point[], x: Take, y: Take): Series[] {
  const counts = [...new Set(points.map(({ sequences }) => sequences))].sort((a, b) => a - b)
  return counts.map((count) =>
    line(
      `${count}`,
      points.filter(({ sequences }) => sequences === count),
      x,
      y,
    ),
  )
}
