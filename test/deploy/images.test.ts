import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const root = join(import.meta.dirname, '..', '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** Images start Node without the launcher, so they say again how the allocator lays out weights. */
test.each(['deploy/Dockerfile', 'deploy/Dockerfile.cuda'])('%s sets GLIBC_TUNABLES as the launcher does', (file) => {
  const [launcher] = read('bin/run.mjs').match(/glibc\.malloc[^']+/) ?? []
  expect(launcher).toContain('hugetlb=1')
  expect(read(file)).toContain(`GLIBC_TUNABLES=${launcher} `)
})
