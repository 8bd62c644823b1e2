import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { createOutputBuffer, createRowBuffer, rowEncoding } from '../../services/dispatch/rows.ts'
import type { ExpertHost } from '../../services/expert/host.ts'
import { createLocalHost } from '../../services/expert/local-host.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'

const pack = testPacks()
const stageDir = mkdtempSync(join(tmpdir(), 'moesh-host-'))
afterAll(() => rmSync(stageDir, { recursive: true, force: true }))

const rowCount = 3
const experts = Array.from({ length: 16 }, (_, expert) => expert)

test.each([1, 2])(
  'what is unloaded is refused, and the others compute the same bits before, meanwhile and after: %i ranks',
  async (ranks) => {
    const { reader, host } = await open(ranks)
    const load = (ids: readonly number[]) =>
      host.load(ids.map((expert) => ({ ...reader.shard(0, expert), path: reader.path(reader.shard(0, expert).file) })))
    await load(experts)
    const before = await outputs(host, experts)
    const gone = [1, 2, 6, 15]
    const rest = experts.filter((expert) => !gone.includes(expert))
    const unloaded = host.unload(gone.map((expert) => ({ layer: 0, expert })))
    const meanwhile = await outputs(host, rest)
    await unloaded
    expect([...(host.held().get(0) ?? [])].sort((a, b) => a - b)).toEqual(rest)
    const after = await outputs(host, rest)
    for (const expert of rest) {
      expect(meanwhile.get(expert)).toBe(before.get(expert))
      expect(after.get(expert)).toBe(before.get(expert))
    }
    await expect(outputs(host, [6])).rejects.toMatchObject({ code: 'EXPERT_NOT_HELD' })
    await load([6])
    expect((await outputs(host, [6])).get(6)).toBe(before.get(6))
    await host.close()
  },
)

test('more than one rank on WebGPU is refused', async () => {
  const { spec, weightFormat: format } = (await pack(demoCheckpoint, 'int8')).manifest
  const host = createLocalHost({ spec, format, ranks: 2, provider: 'webgpu', cpus: null, stageDir })
  await expect(host).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('--ranks 1') })
})

async function open(ranks: number) {
  const reader = await pack(demoCheckpoint, 'int8')
  const { spec, weightFormat: format } = reader.manifest
  return { reader, host: await createLocalHost({ spec, format, ranks, provider: 'cpu', cpus: null, stageDir }) }
}

/** Of the same rows for each expert, as bits. */
async function outputs(host: ExpertHost, ids: readonly number[]): Promise<Map<number, string>> {
  const { spec } = (await pack(demoCheckpoint, 'int8')).manifest
  const { hidden } = spec
  const rows = createRowBuffer(rowEncoding('int8'), hidden, rowCount)
  rows.data.forEach((_, at) => {
    rows.data[at] = (at * 37 + 11) % 251
  })
  rows.scales.fill(0.01)
  const pairs = ids.length * rowCount
  const buffer = createOutputBuffer(hidden, pairs)
  await host.call({
    layer: 0,
    experts: Int32Array.from(ids),
    counts: new Int32Array(ids.length).fill(rowCount),
    rowIndices: Int32Array.from({ length: pairs }, (_, at) => at % rowCount),
    rows,
    outputs: buffer,
    outputStart: 0,
  })
  const floats = rowCount * hidden
  return new Map(
    ids.map((expert, at) => [
      expert,
      Buffer.from(
        Uint8Array.from(Buffer.from(buffer.data.buffer, buffer.data.byteOffset + at * floats * 4, floats * 4)),
      ).toString('base64'),
    ]),
  )
}
