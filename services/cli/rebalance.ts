import { z } from 'zod'
import type { OptionsOf } from '../config/options.ts'
import { formatBytes } from './bytes.ts'
import { ApiClient } from './client.ts'
import { table } from './table.ts'

const reportSchema = z.object({
  moves: z.array(
    z.object({ layer: z.number(), expert: z.number(), from: z.string(), to: z.string(), why: z.string() }),
  ),
  balancedness_before: z.number(),
  balancedness_after: z.number(),
  bytes: z.string().transform(Number),
  epoch: z.string().transform(Number),
})
export type RebalanceDocument = z.infer<typeof reportSchema>

/** `moesh rebalance`. */
export async function runRebalance(options: OptionsOf<'rebalance'>): Promise<void> {
  const client = await ApiClient.open(options)
  try {
    const report = reportSchema.parse(await client.call('moesh.v1.Cluster/Rebalance', { dry_run: options.dryRun }))
    process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : renderRebalance(report, options.dryRun))
  } finally {
    client.close()
  }
}

/** For people. */
export function renderRebalance(report: RebalanceDocument, isDryRun: boolean): string {
  const balance = `balance ${percent(report.balancedness_before)} → ${percent(report.balancedness_after)}`
  if (report.moves.length === 0) return `nothing to move; balance ${percent(report.balancedness_before)}\n`
  const rows = report.moves.map(({ layer, expert, from, to, why }) => [
    `${layer}`,
    `${expert}`,
    from || '(new copy)',
    to || '(dropped)',
    why,
  ])
  const copies = `${report.moves.length} moves, ${formatBytes(report.bytes)} to copy`
  const outcome = isDryRun ? 'this was a dry run: nothing was done' : `epoch ${report.epoch} is being loaded`
  return `${table([['LAYER', 'EXPERT', 'FROM', 'TO', 'WHY'], ...rows])}\n${copies}, ${balance}; ${outcome}\n`
}

function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`
}
