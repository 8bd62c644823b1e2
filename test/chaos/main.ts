import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { packCheckpoint } from '../../services/pack/pack.ts'
import { redisCommand } from '../redis.ts'
import type { TestCluster } from '../support/cluster.ts'
import { combination, type Row, round, startChaosCluster, table } from './chaos.ts'
import { faults, removeVolumes } from './faults.ts'
import { Load, undisturbed } from './load.ts'
import { randomFrom } from './random.ts'

/**
 * `npm run test:chaos`: two coordinators, three expert nodes, a Redis, 16 streams at all times, and everything breaks:
 * each fault in turn, then two at once, drawn from the seed. Fails if any stream ends with another token than an
 * undisturbed run, or with an error.
 */

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    faults: { type: 'string', default: '' },
    seconds: { type: 'string', default: '480' },
    streams: { type: 'string', default: '16' },
    logs: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})
const usage = `npm run test:chaos -- [--seed N] [--seconds N] [--streams N] [--faults WORD,WORD] [--logs]
  --faults  only faults whose name contains one of the words, each once
  --seconds no new round begins after so long; default 480
  --logs    print what the processes logged, where a round had problems
faults: ${faults.map(({ name }) => name).join('; ')}
`

async function main(): Promise<number> {
  if (values.help) {
    process.stdout.write(usage)
    return 0
  }
  if (redisCommand() === null) return 1
  const seed = Number(values.seed)
  const random = randomFrom(seed)
  const words = values.faults.split(',').filter((word) => word !== '')
  const chosen = faults.filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)))
  if (chosen.length === 0) {
    process.stderr.write(usage)
    return 2
  }
  const directory = mkdtempSync(join(tmpdir(), 'moesh-chaos-'))
  const pack = join(directory, 'pack')
  await packCheckpoint(join(import.meta.dirname, '..', '..', 'models', 'tales-moe'), pack, { format: 'int8' })
  const cluster = await startChaosCluster(pack)
  const rows: Row[] = []
  try {
    const load = new Load(cluster, await undisturbed(cluster), Number(values.streams))
    const endMs = performance.now() + Number(values.seconds) * 1000
    const show = (row: Row) => {
      rows.push(row)
      process.stdout.write(`${table([row]).split('\n')[1]}\n`)
      for (const problem of row.problems) process.stdout.write(`    ${problem.slice(0, 2000)}\n`)
      if (values.logs && row.problems.length > 0) {
        for (const { id, log } of processes(cluster)) process.stdout.write(`-- ${id}\n${log().slice(-6000)}\n`)
      }
    }
    process.stdout.write(`seed ${seed}\n`)
    for (const fault of chosen) {
      if (performance.now() < endMs) show(await round(cluster, load, [fault], random))
    }
    while (words.length === 0 && performance.now() < endMs) {
      show(await round(cluster, load, combination(faults, random), random))
    }
    await load.stop()
    const isWell = load.failures.length === 0 && rows.every(({ problems }) => problems.length === 0)
    process.stdout.write(`\n${table(rows)}\n\n${load.ended} streams, ${load.failures.length} failed; seed ${seed}\n`)
    return isWell ? 0 : 1
  } finally {
    await cluster.close(removeVolumes)
    rmSync(directory, { recursive: true, force: true })
  }
}

function processes(cluster: TestCluster) {
  return [...cluster.coordinators, ...cluster.experts].map((each) => ({ id: each.id, log: () => each.log() }))
}

// Whoever is told to end takes the cluster's processes along: they end with the process's own exit.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
process.exit(await main())
