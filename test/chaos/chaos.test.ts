import { expect, test } from 'vitest'
import { redisCommand } from '../redis.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'
import { round, startChaosCluster } from './chaos.ts'
import { faults, removeVolumes } from './faults.ts'
import { Load, undisturbed } from './load.ts'
import { randomFrom } from './random.ts'

/** The short part of `npm run test:chaos`: two faults, few streams. */

const pack = testPacks()

test.skipIf(redisCommand() === null)(
  'streams outlive the leader, then an expert node together with Redis, and give the tokens of an undisturbed run',
  async () => {
    const { dir } = await pack(demoCheckpoint, 'int8')
    const cluster = await startChaosCluster(dir)
    try {
      const load = new Load(cluster, await undisturbed(cluster), 4)
      const random = randomFrom(1)
      const named = (...words: string[]) => faults.filter(({ name }) => words.includes(name))
      const rows = [
        await round(cluster, load, named('SIGKILL the leader'), random),
        await round(cluster, load, named('SIGKILL an expert node', 'SIGKILL Redis, restart it empty'), random),
      ]
      await load.stop()
      expect(rows.flatMap(({ problems }) => problems)).toEqual([])
      expect(load.failures).toEqual([])
      expect(rows[0]?.resumes).toBeGreaterThan(0)
    } finally {
      await cluster.close(removeVolumes)
    }
  },
  120_000,
)
