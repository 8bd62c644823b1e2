import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { plotSvg } from '../../services/cli/plot.ts'
import { createStage, removeStage } from '../../services/runtime/stage.ts'
import { calibrate } from './calibrate.ts'
import { chartsOf } from './charts.ts'
import { readCost } from './cost.ts'
import { readOptions, type SimulateCommand, type SimulateOptions, type SweepName, usage } from './options.ts'
import { sweepText } from './report.ts'
import { middleOf, type Point, type SweepContext, sweepNodes, sweepRoundTrip, sweepSkew } from './sweeps.ts'

/**
 * `npm run bench:simulate`: how a coordinator and up to 64 expert nodes would do, on one machine. See
 * `docs/simulation.md`. Exit status: 1 where something failed, 2 for wrong usage.
 */
async function main(args: readonly string[]): Promise<number> {
  let command: SimulateCommand
  try {
    command = readOptions(args)
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}; see "npm run bench:simulate -- --help"\n`)
    return 2
  }
  if (command.kind === 'help') process.stdout.write(usage)
  else if (command.kind === 'calibrate') await runCalibration(command)
  else await runSweeps(command)
  return 0
}

async function runCalibration({ file, shape, format }: Extract<SimulateCommand, { kind: 'calibrate' }>): Promise<void> {
  const stageDir = createStage(join(tmpdir(), 'moesh-simulate'))
  try {
    const { cost, samples, errorMedian } = await calibrate(shape, format, stageDir)
    const facts = { shape: shape.name, format, ...machine() }
    const document = { ...cost, measured: { ...facts, errorMedian, samples } }
    writeFileSync(file, `${JSON.stringify(document, null, 2)}\n`)
    process.stdout.write(`${JSON.stringify(cost)}, off by ${(100 * errorMedian).toFixed(1)} % (median)\n`)
  } finally {
    removeStage(stageDir)
  }
}

const sweeps: Record<SweepName, (context: SweepContext) => Promise<Point[]>> = {
  nodes: sweepNodes,
  'round-trip': sweepRoundTrip,
  skew: sweepSkew,
}

async function runSweeps(options: SimulateOptions): Promise<void> {
  const cost = readCost(options.costFile)
  const { perCallMs, perExpertMs, perRowMs } = cost
  const onPoint = (point: Point) =>
    process.stderr.write(`${point.nodes} nodes, ${point.sequences} sequences: ${point.tokensPerSecond.toFixed(0)}/s\n`)
  const context: SweepContext = { options, cost: { perCallMs, perExpertMs, perRowMs }, onPoint }
  const document: { machine: object; cost: object; sweeps: Partial<Record<SweepName, Point[]>> } = {
    machine: machine(),
    cost: context.cost,
    sweeps: {},
  }
  if (options.svgDir !== undefined) mkdirSync(options.svgDir, { recursive: true })
  for (const name of options.sweeps) {
    const points = await sweeps[name](context)
    document.sweeps[name] = points
    process.stdout.write(`${name}\n\n${sweepText(name, points)}\n`)
    // After each sweep: a run that is interrupted leaves what it has.
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(document, null, 2)}\n`)
    if (options.svgDir !== undefined) {
      const svg = plotSvg(chartsOf(name, points, middleOf(options)))
      writeFileSync(join(options.svgDir, `simulation-${name}.svg`), svg)
    }
  }
}

function machine() {
  const processors = cpus()
  return {
    date: new Date().toISOString(),
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cores: processors.length,
    node: process.versions.node,
    load: loadavg(),
  }
}

process.exit(await main(process.argv.slice(2)))
