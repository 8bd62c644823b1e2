import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openPack } from '../../services/pack/reader.ts'
import type { ClusterProcess, TestCluster } from '../support/cluster.ts'

/** What a fault may touch; two that run at once get different experts. */
export type Victims = { cluster: TestCluster; experts: readonly ClusterProcess[] }

export type Fault = {
  name: string
  /** Expert nodes that it takes. */
  experts: number
  /** So long it stays, in ms. */
  holdMs: number
  inject(victims: Victims): Promise<void>
  heal(victims: Victims): Promise<void>
  /** Beside the tokens: what must be seen afterwards; a sentence if it is not. */
  check?(victims: Victims): Promise<string | null>
}

export const faults: readonly Fault[] = [
  {
    name: 'SIGKILL an expert node',
    experts: 1,
    holdMs: 3000,
    inject: async ({ experts }) => void (await Promise.all(experts.map((each) => each.kill()))),
    heal: restart,
  },
  {
    name: 'SIGSTOP an expert node for 5 s',
    experts: 1,
    holdMs: 5000,
    inject: async ({ experts }) => {
      for (const each of experts) each.signal('SIGSTOP')
    },
    heal: async ({ experts }) => {
      for (const each of experts) each.signal('SIGCONT')
    },
  },
  {
    name: 'SIGKILL the leader',
    experts: 0,
    holdMs: 2000,
    inject: async ({ cluster }) => {
      const { leader } = await cluster.status()
      await cluster.coordinators.find(({ id }) => id === leader)?.kill()
    },
    heal: async ({ cluster }) => {
      for (const each of cluster.coordinators) {
        if (each.isRunning) continue
        cluster.forgetClient(each)
        each.start()
      }
    },
  },
  {
    name: 'SIGKILL Redis, restart it empty',
    experts: 0,
    holdMs: 2000,
    inject: async ({ cluster }) => cluster.redis.kill(),
    heal: async ({ cluster }) => cluster.redis.restart(),
  },
  {
    name: 'half-open connection for 5 s',
    experts: 1,
    holdMs: 5000,
    inject: async ({ experts }) => {
      for (const { proxy } of experts) proxy?.hold('both')
    },
    heal: async ({ experts }) => {
      for (const { proxy } of experts) proxy?.heal()
    },
  },
  {
    name: '200 ms delay for 5 s',
    experts: 1,
    holdMs: 5000,
    inject: async ({ experts }) => {
      for (const { proxy } of experts) proxy?.delay(200)
    },
    heal: async ({ experts }) => {
      for (const { proxy } of experts) proxy?.delay(0)
    },
  },
  {
    name: 'a byte of every cached shard flipped, restart',
    experts: 1,
    holdMs: 500,
    inject: async ({ experts: [victim] }) => {
      await victim?.kill()
      if (victim) corrupt(victim)
    },
    heal: restart,
    check: async ({ cluster, experts: [victim] }) => {
      const damaged = victim ? await heldThoughDamaged(cluster, victim) : []
      return damaged.length === 0 ? null : `${victim?.id} holds shards whose cached files are damaged: ${damaged}`
    },
  },
  {
    name: 'full shard cache, another node killed',
    experts: 2,
    holdMs: 3000,
    inject: async ({ experts: [full, killed] }) => {
      if (full) fill(full)
      await killed?.kill()
    },
    heal: async ({ experts: [full, killed] }) => {
      if (full) rmSync(join(shards(full), 'filler'), { force: true })
      killed?.start()
    },
  },
  {
    name: 'SIGKILL two of three expert nodes at once',
    experts: 2,
    holdMs: 3000,
    inject: async ({ experts }) => void (await Promise.all(experts.map((each) => each.kill()))),
    heal: restart,
  },
  {
    name: 'SIGSTOP Redis for 5 s',
    experts: 0,
    holdMs: 5000,
    inject: async ({ cluster }) => cluster.redis.pause(),
    heal: async ({ cluster }) => cluster.redis.resume(),
  },
  {
    name: 'SIGTERM two of three expert nodes, one after the other',
    experts: 2,
    holdMs: 500,
    // The rest belongs to healing: with the store away nothing can be moved, and a fault beside this one may take it.
    inject: async ({ experts: [first] }) => void first?.signal('SIGTERM'),
    heal: async (victims) => {
      const [first, ...others] = victims.experts
      await first?.finished
      for (const each of others) {
        each.signal('SIGTERM')
        await each.finished
      }
      await restart(victims)
    },
    check: async ({ experts }) => {
      const forced = experts.filter((each) => !each.log().includes('everything was moved off'))
      return forced.length === 0 ? null : `${forced.map(({ id }) => id).join()} ended with experts`
    },
  },
]

async function restart({ experts }: Victims): Promise<void> {
  for (const each of experts) if (!each.isRunning) each.start()
}

const volumes = new Set<string>()
process.once('exit', () => removeVolumes())

/**
 * Gives a node's shard cache a file system of its own, small enough to be filled. Where that is not allowed the fault
 * makes the directory unusable instead.
 */
export function giveVolume(expert: ClusterProcess): boolean {
  const directory = shards(expert)
  mkdirSync(directory, { recursive: true })
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', directory], { stdio: 'ignore' })
    volumes.add(directory)
    return true
  } catch {
    return false
  }
}

export function removeVolumes(): void {
  for (const directory of volumes) execFileSync('umount', ['-l', directory], { stdio: 'ignore' })
  volumes.clear()
}

function shards(expert: ClusterProcess): string {
  return join(expert.cache, 'shards')
}

/** The cache loses what it holds, too: otherwise there would be nothing to write. */
function fill(expert: ClusterProcess): void {
  const directory = shards(expert)
  if (!volumes.has(directory)) {
    rmSync(directory, { recursive: true, force: true })
    return
  }
  for (const name of readdirSync(directory)) rmSync(join(directory, name))
  try {
    for (let written = 0; written < 32; written++) {
      writeFileSync(join(directory, 'filler'), Buffer.alloc(1024 * 1024), { flag: 'a' })
    }
  } catch {
    // Full, as it should be.
  }
}

/** Shards that a node computes with although their files in its cache are not what their digests say. */
async function heldThoughDamaged(cluster: TestCluster, expert: ClusterProcess): Promise<string[]> {
  const held = await cluster.heldBy(expert.id)
  const { shards: listed } = openPack(cluster.pack).manifest
  return listed
    .filter(({ layer, expert: index }) => held.has(`${layer}/${index}`))
    .map(({ sha256 }) => ({ sha256, path: join(shards(expert), `${sha256}.shard`) }))
    .filter(
      ({ sha256, path }) =>
        existsSync(path) && sha256 !== createHash('sha256').update(readFileSync(path)).digest('hex'),
    )
    .map(({ sha256 }) => sha256)
}

function corrupt(expert: ClusterProcess): void {
  const directory = shards(expert)
  for (const name of readdirSync(directory)) {
    const path = join(directory, name)
    const bytes = readFileSync(path)
    const at = bytes.length >> 1
    bytes[at] = (bytes[at] ?? 0) ^ 1
    writeFileSync(path, bytes)
  }
}
