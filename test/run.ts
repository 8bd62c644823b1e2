import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

/** `npm test`: types, lint, then unit and integration tests, fast ones first. Ends at the first part that fails. */

const root = join(import.meta.dirname, '..')
const tool = (...path: string[]) => join(root, 'node_modules', ...path)
const parts: { name: string; args: string[] }[] = [
  { name: 'types', args: [tool('typescript', 'bin', 'tsc'), '--noEmit'] },
  { name: 'lint', args: [tool('@biomejs', 'biome', 'bin', 'biome'), 'check', '.'] },
  { name: 'tests', args: [tool('vitest', 'vitest.mjs'), 'run', ...process.argv.slice(2)] },
]

for (const { name, args } of parts) {
  process.stdout.write(`\n== ${name}\n`)
  const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) {
    process.stdout.write(`\n${name}: failed\n`)
    process.exit(1)
  }
}
