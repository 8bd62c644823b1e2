import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const root = join(import.meta.dirname, '..', '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** Images start Node without the launcher, so they say again how memory is laid out and code compiled. */
test.each(['deploy/Dockerfile', 'deploy/Dockerfile.cuda'])('%s starts Node as the launcher does', (file) => {
  const [launcher] = read('bin/run.mjs').match(/glibc\.malloc[^']+/) ?? []
  expect(launcher).toContain('hugetlb=1')
  expect(read(file)).toContain(`GLIBC_TUNABLES=${launcher} `)
  const [, list = ''] = read('bin/run.mjs').match(/const v8Flags = \[([^\]]*)\]/) ?? []
  const flags = [...list.matchAll(/'([^']+)'/g)].map(([, flag]) => flag)
  expect(flags.length).toBeGreaterThan(0)
  expect(read(file)).toContain(
    `ENTRYPOINT ${JSON.stringify(['node', ...flags, '/app/services/cli/main.ts']).replaceAll(',', ', ')}`,
  )
  // The compile cache is used only by a Node with the same flags.
  expect(read(file)).toContain(`NODE_COMPILE_CACHE=/app/.compile-cache node ${flags.join(' ')} services/cli/main.ts`)
})
