// Takes out of node_modules what a Linux server of this processor never opens: other platforms' ONNX Runtime, source
// maps, type declarations, documentation. Licences stay. Used by the Dockerfiles: `node prune.mjs node_modules`.
import { readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

const root = process.argv[2] ?? 'node_modules'
const own = join('linux', process.arch)
let freedBytes = 0

const binaries = join(root, 'onnxruntime-node', 'bin', 'napi-v6')
for (const platform of readdirSync(binaries)) {
  for (const arch of readdirSync(join(binaries, platform))) {
    if (join(platform, arch) !== own) remove(join(binaries, platform, arch))
  }
}
walk(root)
process.stderr.write(`pruned ${Math.round(freedBytes / 1e6)} MB\n`)

function walk(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isSymbolicLink()) continue
    if (entry.isDirectory()) {
      if (['.cache', '.bin', 'docs', 'example', 'examples', '__tests__'].includes(entry.name)) remove(path)
      else walk(path)
    } else if (/\.(map|d\.[cm]?ts|tsbuildinfo|markdown)$/.test(entry.name)) remove(path)
    else if (/\.md$/.test(entry.name) && !/licen[cs]e|notice|copying/i.test(entry.name)) remove(path)
  }
}

function remove(path) {
  freedBytes += bytes(path)
  rmSync(path, { recursive: true })
}

function bytes(path) {
  const stat = statSync(path)
  if (!stat.isDirectory()) return stat.size
  return readdirSync(path).reduce((sum, name) => sum + bytes(join(path, name)), 0)
}
