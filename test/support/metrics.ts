import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/** What a metrics port tells, by name and labels as they are written. */
export async function readMetrics(address: string): Promise<Map<string, number>> {
  const response = await fetch(`http://${address}/metrics`)
  if (!response.ok) throw new Error(`${address} answers ${response.status}`)
  const lines = (await response.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(' ')
      return [line.slice(0, at), Number(line.slice(at + 1))]
    }),
  )
}

/** Names of what metrics ports told; a histogram's series have its name. */
export function metricNames(...told: readonly ReadonlyMap<string, number>[]): Set<string> {
  const series = told.flatMap((its) => [...its.keys()])
  return new Set(series.map((name) => name.replace(/\{.*/, '').replace(/_(bucket|sum|count)$/, '')))
}

/** Those that docs/operations.md lists. */
export function documentedMetrics(): Set<string> {
  const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'operations.md'), 'utf8')
  return new Set([...page.matchAll(/`((?:moesh|process)_[a-z_]+)/g)].map(([, name = '']) => name))
}
