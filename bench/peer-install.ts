import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { peerModules, peerVersion } from './peer-binding.ts'

/** The packages that hold llama.cpp's prebuilt CPU binaries. */
const binaries: Readonly<Record<string, string>> = {
  'linux-x64': 'linux-x64',
  'linux-arm64': 'linux-arm64',
  'darwin-x64': 'mac-x64',
  'darwin-arm64': 'mac-arm64-metal',
  'win32-x64': 'win-x64',
  'win32-arm64': 'win-arm64',
}

/**
 * Installs the peer into bench/node_modules where it is not yet: the package by its lock file, and of its binaries the
 * one for this machine (all of them, with those for GPUs, take a gigabyte). No install scripts run.
 */
export function ensurePeer(): void {
  const platform = `${process.platform}-${process.arch}`
  const binary = binaries[platform]
  if (binary === undefined) throw new Error(`llama.cpp has no prebuilt binary for ${platform}`)
  const lock = readFileSync(join(import.meta.dirname, 'package-lock.json'))
  const hash = createHash('sha256').update(lock).update(platform).digest('hex')
  const stamp = join(peerModules, '.lock-hash')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === hash) return
  process.stderr.write('installing llama.cpp (once) ...\n')
  // Not "ci": that insists on every optional binary, and some registries do not have those for rarer platforms.
  npm('install', '--no-save', `@node-llama-cpp/${binary}@${peerVersion}`)
  writeFileSync(stamp, hash)
}

function npm(...args: string[]): void {
  const fixed = ['--ignore-scripts', '--omit=optional', '--no-audit', '--no-fund', '--loglevel=error']
  const done = spawnSync('npm', [...args, ...fixed], { cwd: import.meta.dirname, stdio: ['ignore', 2, 2] })
  if (done.status !== 0) throw new Error(`"npm ${args.join(' ')}" failed in bench/`)
}
