import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { rowPlans } from './rows.ts'
import { type BenchShape, benchShapes, isShapeName } from './shape.ts'

export const usage = `Usage: npm run bench -- [flags]

  --rows REGEX     only rows whose name matches: ${rowPlans
    .filter(({ format }) => format === 'int8')
    .map(({ name }) => name)
    .join(', ')} …
  --pairs N        alternating pairs of each row (default: 5)
  --threads N      of each side (default: 2)
  --json FILE      also write the report there
  --shape NAME     ${Object.keys(benchShapes).join(' or ')} (default: olmoe-4l)
  --seed N         of the weights (default: 1)
  --cache DIR      where weights are kept for the next run, about 11 GB (default: ${join(tmpdir(), 'moesh-bench')})
  --list           print the names of the rows
`

export type BenchOptions = {
  rows: RegExp
  pairs: number
  threads: number
  json: string | undefined
  shape: BenchShape
  seed: number
  cacheDir: string
}

export class UsageError extends Error {}

/** Of a flag. Errors: UsageError. */
export function wholeNumber(name: string, text: string, least = 1): number {
  if (/^\d{1,9}$/.test(text) && Number(text) >= least) return Number(text)
  const range = least === 0 ? '' : ` above ${least - 1}`
  throw new UsageError(`--${name}: "${text}" is not a whole number${range}`)
}

/** Errors: UsageError, and those of `parseArgs`. */
export function readOptions(args: readonly string[]): BenchOptions | 'help' | 'list' {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rows: { type: 'string', default: '' },
      pairs: { type: 'string', default: '5' },
      threads: { type: 'string', default: '2' },
      json: { type: 'string' },
      shape: { type: 'string', default: 'olmoe-4l' },
      seed: { type: 'string', default: '1' },
      cache: { type: 'string', default: join(tmpdir(), 'moesh-bench') },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) return 'help'
  if (values.list) return 'list'
  const expression = (text: string) => {
    try {
      return new RegExp(text)
    } catch (cause) {
      throw new UsageError(`--rows: "${text}" is no regular expression`, { cause })
    }
  }
  if (!isShapeName(values.shape)) throw new UsageError(`--shape: there is no "${values.shape}"`)
  return {
    rows: expression(values.rows),
    pairs: wholeNumber('pairs', values.pairs),
    threads: wholeNumber('threads', values.threads),
    json: values.json,
    shape: benchShapes[values.shape],
    seed: wholeNumber('seed', values.seed),
    cacheDir: values.cache,
  }
}
