import { readdirSync, readFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { expect, test } from 'vitest'

/**
 * Imports between folders point one way: a folder may import those that stand below it here. `config` and `telemetry`
 * may be imported by all and import nobody but themselves.
 */
const order = [
  ['cli'],
  ['coordinator'],
  ['expert'],
  ['kubernetes'],
  ['cluster', 'dispatch'],
  ['runtime'],
  ['tokenizer', 'pack'],
  ['checkpoint'],
  ['graph'],
  ['model'],
  ['telemetry'],
  ['config'],
]
const level = new Map(order.flatMap((folders, index) => folders.map((folder) => [folder, index] as const)))

const services = resolve(import.meta.dirname, '..', 'services')

function files(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => join(entry.parentPath, entry.name))
}

const folderOf = (file: string) => relative(services, file).split('/')[0] ?? ''

test('imports between folders point one way', () => {
  const wrong: string[] = []
  for (const file of files(services)) {
    const from = folderOf(file)
    for (const [, path = ''] of readFileSync(file, 'utf8').matchAll(/from '(\.[^']+)'/g)) {
      const to = folderOf(resolve(file, '..', path))
      if (to === from || to === '') continue
      const [above, below] = [level.get(from), level.get(to)]
      if (above === undefined || below === undefined || above >= below)
        wrong.push(`${relative(services, file)} → ${to}`)
    }
  }
  expect(wrong).toEqual([])
})
