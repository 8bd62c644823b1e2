import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { runInspect } from '../../services/cli/inspect.ts'
import { runPack } from '../../services/cli/pack.ts'
import { describe as describeModel } from '../../services/pack/describe.ts'
import { nodesNeeded } from '../../services/pack/sizes.ts'

let work = ''
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'moesh-inspect-'))
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

function collect() {
  let text = ''
  return { write: (part: string) => (text += part), text: () => text }
}

test('a checkpoint: what it is, its licence, and what it needs in each format', () => {
  const stdout = collect()
  runInspect({ path: 'models/tales-moe', json: false, stdout })
  expect(stdout.text()).toContain('qwen3_moe: 4 layers of 192, 4 with 16 experts (96 wide), 4 per token')
  expect(stdout.text()).toContain('4.34 M in all, 1.69 M active per token')
  expect(stdout.text()).toContain('Apache-2.0 (permissive)')
  for (const format of ['f32', 'int8', 'int8-fast', 'int4'])
    expect(stdout.text()).toMatch(new RegExp(`^${format} `, 'm'))
})

test('packing prints what it made; the pack has the sizes that were foretold', async () => {
  const stdout = collect()
  const stderr = collect()
  const pack = join(work, 'pack')
  await runPack({ checkpoint: 'test/goldens/mixtral', pack, format: 'int8', json: true, stdout, stderr })
  const result: { digest: string; license: string } = JSON.parse(stdout.text())
  expect(result.license).toBe('unknown')
  const packed = describeModel(pack)
  const foretold = describeModel('test/goldens/mixtral').sizes.filter(({ format }) => format === 'int8')
  expect(packed.sizes).toEqual(foretold)
  expect(packed).toMatchObject({
    kind: 'pack',
    digest: result.digest,
    weightFormat: 'int8',
    license: { id: 'unknown', isPermissive: false },
  })
  expect(packed.files.find(({ name }) => name === 'coordinator.bin')?.bytes).toBe(packed.sizes[0]?.coordinatorBytes)
  const text = collect()
  runInspect({ path: pack, json: false, stdout: text })
  expect(text.text()).toContain(`digest        ${result.digest}`)
  expect(stderr.text()).toContain('100%')
})

test('a licence that is not permissive, or unknown, comes with a notice', async () => {
  const stderr = collect()
  await runPack({
    checkpoint: 'test/goldens/llama',
    pack: join(work, 'llama'),
    format: 'f32',
    json: false,
    stdout: collect(),
    stderr,
  })
  expect(stderr.text()).toContain('licence: the checkpoint names no licence')
})

describe('nodes of a given memory', () => {
  const sizes = { coordinatorBytes: 0, expertBytes: 1000, shardBytes: 100, shardCount: 10 }
  test.each([
    { memoryBytes: 99, nodes: null },
    { memoryBytes: 100, nodes: 10 },
    { memoryBytes: 399, nodes: 4 },
    { memoryBytes: 5000, nodes: 1 },
  ])('$memoryBytes bytes: $nodes', ({ memoryBytes, nodes }) => expect(nodesNeeded(sizes, memoryBytes)).toBe(nodes))

  test('dense models need none', () => expect(nodesNeeded({ ...sizes, shardCount: 0 }, 100)).toBe(0))
})

test('what is neither is refused', () => {
  expect(() => runInspect({ path: 'services', json: false, stdout: collect() })).toThrow(
    /neither a checkpoint nor a pack/,
  )
})
