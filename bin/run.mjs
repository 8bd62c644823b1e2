#!/usr/bin/env node
// Plain JavaScript for any Node >= 20. Installs the packages of the lock file when it changed, then carries on under
// Node 24 (the one running, or the one among the packages), which runs the TypeScript sources as they are.
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const modules = join(root, 'node_modules')
// npm must not run on the Node binary inside node_modules that it is about to replace.
const systemPath = (process.env.PATH ?? '')
  .split(delimiter)
  .filter((entry) => !entry.endsWith(join('node_modules', '.bin')))
  .join(delimiter)

function installIfLockChanged() {
  const lock = join(root, 'package-lock.json')
  if (!existsSync(lock)) return // an installed package or an image: its packages are already there
  const hash = createHash('sha256')
    .update(readFileSync(lock))
    .update(process.platform + process.arch)
    .digest('hex')
  const stamp = join(modules, '.lock-hash')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === hash) return
  process.stderr.write('installing packages (once, about half a minute) ...\n')
  const args = ['ci', '--no-audit', '--no-fund', '--loglevel=error']
  const npm = process.env.npm_execpath
  const env = { ...process.env, PATH: systemPath, ONNXRUNTIME_NODE_INSTALL: 'skip' }
  const stdio = ['ignore', 2, 2]
  const done = npm?.endsWith('.js')
    ? spawnSync(process.env.npm_node_execpath ?? process.execPath, [npm, ...args], { cwd: root, env, stdio })
    : spawnSync('npm', args, { cwd: root, env, stdio })
  if (done.status !== 0) {
    process.stderr.write('npm ci failed; see its message above\n')
    process.exit(1)
  }
  writeFileSync(stamp, hash)
}

function nodeBinary() {
  if (Number(process.versions.node.split('.')[0]) >= 24) return process.execPath
  const windows = process.platform === 'win32'
  const own = join(
    modules,
    `node-${windows ? 'win' : process.platform}-${process.arch}`,
    'bin',
    windows ? 'node.exe' : 'node',
  )
  if (existsSync(own)) return own
  process.stderr.write(
    `moesh needs Node 24 or newer on ${process.platform}/${process.arch}: install it and try again\n`,
  )
  process.exit(1)
}

installIfLockChanged()
// Weights on huge pages: a step streams all that it needs of them, and small pages cost a tenth of it in address
// translations (docs/log.md). The heaps grow by 64 MiB at once, since what grows by little stays on small pages.
const hugePages =
  'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.top_pad=67108864:glibc.malloc.trim_threshold=4294967296'
// What lasts is weights and caches, which are not on JavaScript's heap: that is small, and by default it is marked anew
// whenever it grew by a tenth, up to ten times a second, on cores that others compute on. The nursery is small since a
// process has several of them. What a step calls runs once a layer, so compilers would wait for seconds of it.
const v8Flags = [
  '--heap-growing-percent=100',
  '--max-semi-space-size=2',
  '--invocation-count-for-maglev=100',
  '--invocation-count-for-turbofan=600',
]

const node = nodeBinary()
const child = spawn(node, [...v8Flags, ...process.argv.slice(2)], {
  stdio: 'inherit',
  env: {
    ...process.env,
    PATH: [dirname(node), join(modules, '.bin'), systemPath].join(delimiter),
    // ONNX Runtime would send usage data to its maker.
    ORT_DISABLE_TELEMETRY: '1',
    // CUDA's f32 products are f32 (services/runtime/session.ts).
    NVIDIA_TF32_OVERRIDE: '0',
    GLIBC_TUNABLES: process.env.GLIBC_TUNABLES ?? hugePages,
    NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? join(modules, '.cache', 'compile'),
  },
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal))
child.on('exit', (code, signal) => process.exit(signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1)))
