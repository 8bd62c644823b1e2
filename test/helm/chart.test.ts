import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { schemaFile, undocumented, valuesSchema } from '../../helm/schema.ts'

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
