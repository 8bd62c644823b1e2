import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { peerVersion } from './peer-binding.ts'

/** What a reader needs to know to compare these figures with others. */
export type Machine = {
  date: string
  /** Of the repository, with a "+" where files differ from it; null without git. */
  commit: string | null
  cpu: string
  cores: number
  memoryBytes: number
  kernel: string
  node: string
  onnxruntime: string
  peer: string
  threads: number
  shape: string
  /** Bytes a second that this many threads read together, at best. */
  readBandwidth: number
  /** Over one, five and fifteen minutes. */
  loadBefore: number[]
  loadAfter: number[]
}

const root = join(import.meta.dirname, '..')

export function describeMachine(
  given: Pick<Machine, 'threads' | 'shape' | 'readBandwidth'>,
): Omit<Machine, 'loadAfter'> {
  const processors = cpus()
  return {
    date: new Date().toISOString(),
    commit: commit(),
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cores: processors.length,
    memoryBytes: totalmem(),
    kernel: `${process.platform} ${release()} ${process.arch}`,
    node: process.versions.node,
    onnxruntime: version(join(root, 'node_modules', 'onnxruntime-node')),
    peer: `llama.cpp, by node-llama-cpp ${peerVersion}`,
    loadBefore: loadavg(),
    ...given,
  }
}

function version(packageDir: string): string {
  const manifest: unknown = JSON.parse(readFileSync(join(packageDir, 'package.json'), 'utf8'))
  return z.object({ version: z.string() }).parse(manifest).version
}

function commit(): string | null {
  const git = (...args: string[]) => spawnSync('git', args, { cwd: root, encoding: 'utf8' })
  const head = git('rev-parse', '--short', 'HEAD')
  if (head.status !== 0) return null
  const isClean = git('status', '--porcelain', '--untracked-files=no').stdout === ''
  return `${head.stdout.trim()}${isClean ? '' : '+'}`
}
