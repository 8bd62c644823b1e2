import { table } from '../../services/cli/table.ts'
import type { SweepName } from './options.ts'
import type { Point } from './sweeps.ts'

type Column = { name: string; of: (point: Point) => string }

const sweepColumns: Record<SweepName, Column[]> = {
  nodes: [],
  'round-trip': [
    { name: 'round trip, ms (measured)', of: (point) => `${point.roundTripMs} (${number(point.roundTripMsMeasured)})` },
    { name: 'jitter, ms', of: ({ jitterMs }) => `${jitterMs}` },
  ],
  skew: [
    { name: 'Zipf', of: ({ skew }) => `${skew}` },
    { name: 'placed', of: ({ placement }) => placement },
  ],
}

const columns: Column[] = [
  { name: 'nodes', of: ({ nodes }) => `${nodes}` },
  { name: 'sequences', of: ({ sequences }) => `${sequences}` },
  { name: 'tokens/s', of: ({ tokensPerSecond }) => number(tokensPerSecond) },
  {
    name: 'dispatch, ms (p50 / p90 / p99)',
    of: ({ dispatchMs: { p50, p90, p99 } }) => [p50, p90, p99].map(number).join(' / '),
  },
  { name: 'experts, ms', of: ({ computeMsP50 }) => number(computeMsP50) },
  { name: 'calls', of: ({ callsPerDispatch }) => number(callsPerDispatch) },
  { name: 'busiest', of: ({ busiestNode }) => number(busiestNode) },
  { name: "coordinator's CPU, ms", of: ({ cpu }) => number(cpu.coordinatorMsPerDispatch) },
  { name: 'thread busy', of: ({ cpu }) => `${Math.round(cpu.eventLoop * 100)} %` },
  {
    name: 'cores (coordinator / nodes)',
    of: ({ cpu }) => `${number(cpu.coordinatorCores)} / ${number(cpu.nodesCores)}`,
  },
  { name: "others' cores", of: ({ othersCores }) => number(othersCores) },
  { name: 'alarms late, ms (p50 / p99)', of: ({ lateMs }) => `${number(lateMs.p50)} / ${number(lateMs.p99)}` },
  { name: 'sent again', of: ({ retriedRows, pairs }) => `${number((100 * retriedRows) / pairs)} %` },
]

export function sweepText(sweep: SweepName, points: readonly Point[]): string {
  const all = [...sweepColumns[sweep], ...columns]
  return table([all.map(({ name }) => name), ...points.map((point) => all.map(({ of }) => of(point)))])
}

function number(value: number | null): string {
  if (value === null) return ''
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)
}
