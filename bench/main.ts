import { renameSync, writeFileSync } from 'node:fs'
import { loadavg } from 'node:os'
import { BandwidthGauge } from './bandwidth.ts'
import { watch } from './disturbance.ts'
import { describeMachine } from './machine.ts'
import { type BenchOptions, readOptions, usage } from './options.ts'
import { ensurePeer } from './peer-install.ts'
import { type Report, reportText } from './report.ts'
import { alonePlans, benchFormats, clusterPlans, type RowPlan, rowPlans } from './rows.ts'
import { Bench } from './run.ts'

/**
 * `npm run bench`: moesh against llama.cpp on the same weights with the same number of threads, measured alternately in
 * one run, each idle while the other is measured. Exit status: 1 where a row could not be measured, 2 for wrong usage.
 */
async function main(args: readonly string[]): Promise<number> {
  let options: ReturnType<typeof readOptions>
  try {
    options = readOptions(args)
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}; see "npm run bench -- --help"\n`)
    return 2
  }
  if (options === 'help') process.stdout.write(usage)
  else if (options === 'list') process.stdout.write(rowPlans.map(({ name }) => `${name}\n`).join(''))
  else return run(options)
  return 0
}

async function run(options: BenchOptions): Promise<number> {
  ensurePeer()
  const gauge = await BandwidthGauge.start(options.threads)
  try {
    return await measureRows(options, gauge)
  } finally {
    await gauge.close()
  }
}

async function measureRows(options: BenchOptions, gauge: BandwidthGauge): Promise<number> {
  const { threads, shape } = options
  const { result: bandwidth } = await watch(() => gauge.readBest())
  const facts = describeMachine({ threads, shape: shape.name, readBandwidth: bandwidth })
  const report: Report = { machine: { ...facts, loadAfter: facts.loadBefore }, rows: [], failed: [] }
  const bench = new Bench(options, report, gauge)
  const isWanted = ({ name }: RowPlan) => options.rows.test(name)
  /** A part that fails takes only its own rows along. */
  const attempt = async (plans: readonly RowPlan[], work: () => Promise<void>) => {
    try {
      if (plans.length > 0) await work()
    } catch (thrown) {
      const error = thrown instanceof Error ? thrown.message : String(thrown)
      process.stderr.write(`failed: ${error}\n`)
      const measured = new Set(report.rows.map(({ row }) => row))
      for (const { name } of plans) if (!measured.has(name)) report.failed.push({ row: name, error })
    }
    report.machine.loadAfter = loadavg()
    if (options.json !== undefined) writeReport(options.json, report)
  }
  for (const format of benchFormats) {
    const plans = alonePlans.filter((plan) => plan.format === format && isWanted(plan))
    await attempt(plans, () => bench.compareAlone(format, plans))
  }
  for (const plan of clusterPlans.filter(isWanted)) await attempt([plan], () => bench.compareCluster(plan))
  process.stdout.write(`\n${reportText(report)}`)
  return report.failed.length > 0 || report.rows.length === 0 ? 1 : 0
}

/** After each part: a run that is interrupted leaves what it has. */
function writeReport(file: string, report: Report): void {
  writeFileSync(`${file}.partial`, `${JSON.stringify(report, null, 2)}\n`)
  renameSync(`${file}.partial`, file)
}

process.exit(await main(process.argv.slice(2)))
