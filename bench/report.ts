import { formatBytes } from '../services/cli/bytes.ts'
import { table } from '../services/cli/table.ts'
import { othersCoresMax } from './disturbance.ts'
import type { Machine } from './machine.ts'
import type { Summary } from './statistics.ts'

export type ReportRow = {
  row: string
  unit: 'tokens/s'
  ours: Summary
  peer: Summary
  /** Ours divided by the peer's, pair by pair: above 1 is better. */
  ratio: Summary
  pairs: number
  /** Pairs that were measured again because others used the machine meanwhile. */
  repeated: number
  /** The most cores that others used during a measurement that counts; null where the system does not tell. */
  othersCores: number | null
  /** What `peer` is. */
  against: string
  /** Decoding: bytes a second that as many threads read together, between the measurements. */
  readBandwidth?: Summary
  /** Decoding: the share of its median that the medians need at least. */
  bandwidthFraction?: { ours: number; peer: number }
  /** Prefill: the median, in milliseconds. */
  timeToFirstTokenMs?: { ours: number; peer: number }
  /** Over one minute, before and after. */
  load: [before: number, after: number]
}

export type Report = { machine: Machine; rows: ReportRow[]; failed: { row: string; error: string }[] }

export function reportText({ machine, rows, failed }: Report): string {
  const load = (values: readonly number[]) => values.map((value) => value.toFixed(2)).join(' ')
  const facts = table([
    ['machine', `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}, ${machine.kernel}`],
    ['software', `Node ${machine.node}, ONNX Runtime ${machine.onnxruntime}; ${machine.peer}`],
    ['commit', machine.commit ?? 'unknown'],
    ['model', `${machine.shape}, ${machine.threads} threads each`],
    ['memory', `${(machine.readBandwidth / 1e9).toFixed(1)} GB/s read by ${machine.threads} threads`],
    ['load', `${load(machine.loadBefore)} before, ${load(machine.loadAfter)} after`],
  ])
  const errors = failed.map(({ row, error }) => `${row} failed: ${error}\n`)
  return `${facts}\n${rows.length === 0 ? '' : rowsText(rows)}${errors.join('')}`
}

function rowsText(rows: readonly ReportRow[]): string {
  const number = (value: number) => value.toPrecision(value >= 1000 ? 4 : 3)
  const range = ({ min, median, max }: Summary) => `${number(median)} (${number(min)}…${number(max)})`
  const gigabytes = ({ min, median, max }: Summary) => ({ min: min / 1e9, median: median / 1e9, max: max / 1e9 })
  const percent = (value: number) => `${(100 * value).toFixed(0)} %`
  return table([
    [
      'row',
      'moesh, tokens/s',
      'llama.cpp, tokens/s',
      'ratio',
      'memory, GB/s',
      'of it',
      'first token, ms',
      'load',
      'others',
      'against',
    ],
    ...rows.map(
      ({
        row,
        ours,
        peer,
        ratio,
        against,
        readBandwidth,
        bandwidthFraction,
        timeToFirstTokenMs,
        load,
        othersCores,
      }) => [
        row,
        range(ours),
        range(peer),
        `${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}…${ratio.max.toFixed(2)})`,
        readBandwidth === undefined ? '' : range(gigabytes(readBandwidth)),
        bandwidthFraction === undefined ? '' : `${percent(bandwidthFraction.ours)}, ${percent(bandwidthFraction.peer)}`,
        timeToFirstTokenMs === undefined
          ? ''
          : `${timeToFirstTokenMs.ours.toFixed(0)}, ${timeToFirstTokenMs.peer.toFixed(0)}`,
        load.map((value) => value.toFixed(1)).join(' → '),
        othersText(othersCores),
        against,
      ],
    ),
  ])
}

/** Marked where it is too much for the row to be trusted. */
function othersText(cores: number | null): string {
  if (cores === null) return '?'
  return `${cores.toFixed(2)}${cores > othersCoresMax ? ' (!)' : ''}`
}
