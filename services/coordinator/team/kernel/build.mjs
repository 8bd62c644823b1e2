// Compiles attention.ts to attention.wasm, and writes into it which source it was made from: `npm run kernel`.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const directory = import.meta.dirname
const source = join(directory, 'attention.ts')
const target = join(directory, 'attention.wasm')
const compiled = join(directory, 'compiled.wasm')

const compiler = join(directory, 'node_modules', 'assemblyscript', 'bin', 'asc.js')
const flags = [
  '--optimizeLevel',
  '3',
  '--runtime',
  'stub',
  '--importMemory',
  '--noAssert',
  '--enable',
  'simd,bulk-memory',
]
execFileSync(process.execPath, [compiler, source, '--outFile', compiled, ...flags], { stdio: 'inherit' })

// A custom section: id 0, size, then a name and a content with their lengths; all lengths here are below 128.
const name = Buffer.from('source')
const digest = createHash('sha256').update(readFileSync(source)).digest()
const content = Buffer.concat([Buffer.of(name.length), name, digest])
writeFileSync(target, Buffer.concat([readFileSync(compiled), Buffer.of(0, content.length), content]))
rmSync(compiled)
