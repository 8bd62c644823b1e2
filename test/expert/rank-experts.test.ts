import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { createOutputBuffer, createRowBuffer, rowEncoding } from '../../services/dispatch/rows.ts'
import { RankExperts } from '../../services/expert/rank-experts.ts'
import type { ProductRows } from '../../services/runtime/product-rows.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'

const pack = testPacks()
const stageDir = mkdtempSync(join(tmpdir(), 'moesh-rank-'))
afterAll(() => rmSync(stageDir, { recursive: true, force: true }))

const experts = [0, 3, 5, 9]
/** None, one, a few and many. */
const counts = [37, 1, 0, 6]
const pairs = counts.reduce((sum, count) => sum + count, 0)
const rowCount = 50

async function compute(rule: ProductRows) {
  const reader = await pack(demoCheckpoint, 'int4')
  const { spec, weightFormat: format } = reader.manifest
  const options = { stageDir, provider: 'cpu' as const, avoidSaturation: false }
  const rank = new RankExperts(spec, format, options, () => rule)
  const shards = experts.map((expert) => {
    const shard = reader.shard(0, expert)
    return { ...shard, path: reader.path(shard.file) }
  })
  rank.load(0, shards)
  const rows = createRowBuffer(rowEncoding(format), spec.hidden, rowCount)
  const floats = new Float32Array(rows.data.buffer, rows.data.byteOffset, rowCount * spec.hidden)
  floats.forEach((_, at) => {
    floats[at] = Math.sin(at)
  })
  const outputs = createOutputBuffer(spec.hidden, pairs + 2)
  const computed = rank.compute({
    layer: 0,
    experts: Int32Array.from(experts),
    counts: Int32Array.from(counts),
    rowIndices: Int32Array.from({ length: pairs }, (_, at) => (at * 7) % rowCount),
    rows,
    outputs,
    outputStart: 2,
  })
  rank.dispose()
  return { computed, bits: Buffer.from(outputs.data.slice().buffer).toString('hex') }
}

test.each([
  { multiple: 2, max: 4 },
  { multiple: 16, max: 16 },
])('products of $multiple to $max rows: every row is computed once, with the same bits', async (rule) => {
  const whole = await compute({ multiple: 2, max: Number.MAX_SAFE_INTEGER })
  expect(whole.computed).toBe(pairs)
  expect(await compute(rule)).toEqual(whole)
})
