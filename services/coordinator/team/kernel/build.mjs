// Compiles the kernels to WebAssembly, and writes into each which sources it was made from: `npm run kernel`.
// The compiler warns of vectors between functions, which are all within one module here.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const directory = import.meta.dirname
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

for (const kernel of ['attention', 'sampling']) {
  const source = join(directory, `${kernel}.ts`)
  const compiled = join(directory, 'compiled.wasm')
  execFileSync(process.execPath, [compiler, source, '--outFile', compiled, ...flags], { stdio: 'inherit' })

  // A custom section: id 0, size, then a name and a content with their lengths; all lengths here are below 128.
  const name = Buffer.from('source')
  const sources = [source, join(directory, 'exp.ts')].map((path) => readFileSync(path))
  const digest = createHash('sha256').update(Buffer.concat(sources)).digest()
  const content = Buffer.concat([Buffer.of(name.length), name, digest])
  writeFileSync(
    join(directory, `${kernel}.wasm`),
    Buffer.concat([readFileSync(compiled), Buffer.of(0, content.length), content]),
  )
  rmSync(compiled)
}
