import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type Schema, schemaFile, undocumented, valuesSchema } from '../../helm/schema.ts'
import { type Flag, flags } from '../../services/config/flags.ts'

const repository = resolve(import.meta.dirname, '../..')
const kit = process.env.MOESH_K8S_HOME ?? join(homedir(), '.cache', 'moesh-k8s')
const path = [join(kit, 'bin'), process.env.PATH ?? ''].join(delimiter)
const tools = ['helm3', 'helm4', 'helm-unittest', 'kubeconform', 'kube-score']
const found = tools.filter((tool) => path.split(delimiter).some((folder) => existsSync(join(folder, tool))))

describe('the chart', () => {
  it('describes every value where it stands', () => {
    expect(undocumented()).toEqual([])
  })

  it('has the schema that is written in helm/schema.ts (else: node helm/schema.ts)', () => {
    expect(JSON.parse(readFileSync(schemaFile, 'utf8'))).toEqual(valuesSchema())
  })

  it('closes every object of its schema', () => {
    const open: string[] = []
    const walk = (schema: unknown, at: string) => {
      if (typeof schema !== 'object' || schema === null) return
      const properties = 'properties' in schema ? schema.properties : undefined
      if (properties !== undefined && (schema as { additionalProperties?: unknown }).additionalProperties !== false)
        open.push(at)
      for (const [key, inner] of Object.entries(schema)) walk(inner, `${at}/${key}`)
    }
    walk(valuesSchema(), '')
    expect(open).toEqual([])
  })

  it.each(mirrored())('allows for %s (--%s) what the flag allows, and no more', (_, name, schema) => {
    const flag: Flag | undefined = Object.entries(flags).find(([known]) => known === name)?.[1]
    if (flag === undefined) throw new Error(`there is no flag --${name}`)
    const isTaken = (value: unknown) => flag.kind.read(String(value)) !== undefined
    const { type, minimum, maximum, enum: values, pattern } = schema as { [key: string]: unknown } & { enum?: string[] }
    if (values !== undefined) expect(values.filter((value) => !isTaken(value))).toEqual([])
    if (type === 'integer' || type === 'number') {
      // 0 leaves a flag out, where the flag itself has no such value.
      if (minimum !== 0) expect(isTaken(minimum)).toBe(true)
      expect(isTaken(maximum)).toBe(true)
    }
    if (typeof pattern === 'string') {
      const samples = [
        'a',
        'a b',
        'x/y',
        '8GiB',
        '1.5GB',
        '8 GiB',
        '1024',
        '1.5',
        '-1GiB',
        'redis://h:1',
        'rediss://h',
        'h:1',
        'memory:',
      ]
      const allowed = samples.filter((sample) => new RegExp(pattern).test(sample))
      expect(allowed.filter((sample) => !isTaken(sample))).toEqual([])
      expect(allowed.length).toBeGreaterThan(0)
    }
  })

  it('has a test suite for every template', () => {
    const names = (folder: string, suffix: string) =>
      readdirSync(join(repository, 'helm/moesh', folder), { recursive: true })
        .map(String)
        .filter((file) => file.endsWith(suffix))
    const suites = names('tests', '_test.yaml').map((file) =>
      readFileSync(join(repository, 'helm/moesh/tests', file), 'utf8'),
    )
    const untested = [...names('templates', '.yaml'), 'NOTES.txt'].filter(
      (file) => !suites.some((suite) => suite.includes(file)),
    )
    expect(untested).toEqual([])
  })

  if (found.length === 0) console.warn('SKIPPED: none of the chart tools was found, so the chart is not linted')
  it.skipIf(found.length === 0)(`passes ${found.join(', ')}`, () => {
    const env = { ...process.env, PATH: path, MOESH_K8S_SCHEMAS: process.env.MOESH_K8S_SCHEMAS ?? join(kit, 'schemas') }
    try {
      execFileSync(join(repository, 'helm/check.sh'), { env, encoding: 'utf8', stdio: 'pipe' })
    } catch (thrown) {
      const { stdout, stderr } = thrown as { stdout: string; stderr: string }
      throw new Error(`${stdout}\n${stderr}`)
    }
  })
})

/** Values that are passed on as flags: path, flag, schema. */
function mirrored(): [string, string, Schema][] {
  const found: [string, string, Schema][] = []
  const walk = (schema: Schema, at: string) => {
    if (typeof schema['x-flag'] === 'string') found.push([at, schema['x-flag'], schema])
    for (const [key, inner] of Object.entries((schema.properties ?? {}) as Record<string, Schema>))
      walk(inner, `${at}.${key}`)
  }
  walk(valuesSchema(), 'values')
  return found
}
