import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type WeightFormat, weightFormats } from '../../services/model/format.ts'
import { UsageError } from '../options.ts'
import { type BenchShape, benchShapes, isShapeName } from '../shape.ts'

export const sweepNames = ['nodes', 'round-trip', 'skew'] as const
export type SweepName = (typeof sweepNames)[number]

export type SimulateOptions = {
  sweeps: readonly SweepName[]
  /** Of the first sweep; the others take `fixedNodes`. */
  nodes: readonly number[]
  fixedNodes: number
  roundTripsMs: readonly number[]
  jitterMs: number
  skews: readonly number[]
  /** Of the sweep over skew: many, since few rows find few of a popular expert's. */
  skewSequences: readonly number[]
  sequences: readonly number[]
  minReplicas: number
  processes: number
  seconds: number
  shape: BenchShape
  format: WeightFormat
  seed: number
  costFile: string
  json: string | undefined
  svgDir: string | undefined
}

/** Nodes of one process tree; each has a server with its sockets. */
const nodesMax = 256
const defaultCostFile = join(import.meta.dirname, 'cost-olmoe-4l-int8.json')

export const usage = `Usage: npm run bench:simulate -- [flags]

  --sweep NAMES        of ${sweepNames.join(', ')} (default: all)
  --nodes LIST         expert nodes of the sweep over nodes (default: 1,2,4,8,16,32,64)
  --fixed-nodes N      expert nodes of the other sweeps (default: 16)
  --round-trips LIST   added round trip, ms (default: 0,1,2,5,10,20)
  --jitter MS          at most so much more each way, in the row with jitter of that sweep (default: 2)
  --skews LIST         Zipf exponents of the experts' popularity (default: 0,0.5,1,1.5)
  --skew-sequences L   decoding at once in that sweep (default: 64,256)
  --sequences LIST     decoding at once: rows of a step (default: 1,16,64)
  --min-replicas N     live copies of every expert (default: 1)
  --processes N        that the nodes are divided over (default: 2)
  --seconds S          of each measurement (default: 2)
  --shape NAME         ${Object.keys(benchShapes).join(' or ')} (default: olmoe-4l)
  --format NAME        ${weightFormats.join(', ')} (default: int8)
  --seed N             of routing and jitter (default: 1)
  --cost FILE          what a call costs a rank (default: the one for olmoe-4l in int8)
  --calibrate FILE     measures that on this machine, writes the file, and ends
  --json FILE          also write the results there
  --svg DIR            also write simulation-SWEEP.svg there
`

export type Command = { kind: 'help' } | { kind: 'calibrate'; file: string; shape: BenchShape; format: WeightFormat }
export type SimulateCommand = Command | ({ kind: 'sweep' } & SimulateOptions)

/** Errors: UsageError, and those of `parseArgs`. */
export function readOptions(args: readonly string[]): SimulateCommand {
  const text = (fallback: string) => ({ type: 'string', default: fallback }) as const
  const { values } = parseArgs({
    args: [...args],
    options: {
      sweep: text(sweepNames.join(',')),
      nodes: text('1,2,4,8,16,32,64'),
      'fixed-nodes': text('16'),
      'round-trips': text('0,1,2,5,10,20'),
      jitter: text('2'),
      skews: text('0,0.5,1,1.5'),
      'skew-sequences': text('64,256'),
      sequences: text('1,16,64'),
      'min-replicas': text('1'),
      processes: text('2'),
      seconds: text('2'),
      shape: text('olmoe-4l'),
      format: text('int8'),
      seed: text('1'),
      cost: text(defaultCostFile),
      calibrate: { type: 'string' },
      json: { type: 'string' },
      svg: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) return { kind: 'help' }
  if (!isShapeName(values.shape)) throw new UsageError(`--shape: there is no "${values.shape}"`)
  const shape = benchShapes[values.shape]
  const format = weightFormats.find((name) => name === values.format)
  if (format === undefined) throw new UsageError(`--format: there is no "${values.format}"`)
  if (values.calibrate !== undefined) return { kind: 'calibrate', file: values.calibrate, shape, format }
  const numbers = (name: string, given: string, limits: Limits) =>
    given.split(',').map((part) => readNumber(name, part.trim(), limits))
  return {
    kind: 'sweep',
    sweeps: values.sweep.split(',').map((name) => readSweep(name.trim())),
    nodes: numbers('nodes', values.nodes, { from: 1, to: nodesMax, whole: true }),
    fixedNodes: readNumber('fixed-nodes', values['fixed-nodes'], { from: 1, to: nodesMax, whole: true }),
    roundTripsMs: numbers('round-trips', values['round-trips'], { from: 0, to: 1000, whole: true }),
    jitterMs: readNumber('jitter', values.jitter, { from: 0, to: 1000 }),
    skews: numbers('skews', values.skews, { from: 0, to: 10 }),
    skewSequences: numbers('skew-sequences', values['skew-sequences'], { from: 1, to: 1024, whole: true }),
    sequences: numbers('sequences', values.sequences, { from: 1, to: 1024, whole: true }),
    minReplicas: readNumber('min-replicas', values['min-replicas'], { from: 1, to: 64, whole: true }),
    processes: readNumber('processes', values.processes, { from: 1, to: 64, whole: true }),
    seconds: readNumber('seconds', values.seconds, { from: 0, to: 600 }),
    shape,
    format,
    seed: readNumber('seed', values.seed, { from: 0, to: 2 ** 31 - 1, whole: true }),
    costFile: values.cost,
    json: values.json,
    svgDir: values.svg,
  }
}

type Limits = { from: number; to: number; whole?: boolean }

function readNumber(name: string, text: string, { from, to, whole = false }: Limits): number {
  const value = text === '' ? Number.NaN : Number(text)
  if (!(value >= from && value <= to) || (whole && !Number.isInteger(value))) {
    throw new UsageError(`--${name}: "${text}" is not a ${whole ? 'whole ' : ''}number from ${from} to ${to}`)
  }
  return value
}

function readSweep(text: string): SweepName {
  const name = sweepNames.find((known) => known === text)
  if (name === undefined) throw new UsageError(`--sweep: there is no "${text}"`)
  return name
}
