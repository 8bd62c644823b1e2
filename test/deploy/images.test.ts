import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const root = join(import.meta.dirname, '..', '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** Images start Node without the launcher, so they say again how memory is laid out and collected. */
test.each(['deploy/Dockerfile', 'deploy/Dockerfile.cuda'])('%s sets up memory as the launcher does', (file) => {
  const [launcher] = read('bin/run.mjs').match(/glibc\.malloc[^']+/) ?? []
  expect(launcher).toContain('hugetlb=1')
  expect(read(file)).toContain(`GLIBC_TUNABLES=${launcher} `)
  const [, flags = ''] = read('bin/run.mjs').match(/const collector = \[(.*)\]/) ?? []
  expect(flags).toContain('--heap-growing-percent')
  expect(read(file)).toContain(`ENTRYPOINT ["node", ${flags.replaceAll("'", '"')}, "/app/services/cli/main.ts"]`)
})
