import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { proveRowInvariance } from '../../services/runtime/canary.ts'
import { paddedRows, productRows } from '../../services/runtime/product-rows.ts'
import { demoCheckpoint, testPacks } from '../support/packs.ts'

const pack = testPacks()
const stageDir = mkdtempSync(join(tmpdir(), 'moesh-canary-'))
afterAll(() => rmSync(stageDir, { recursive: true, force: true }))

describe('row invariance', () => {
  test.each(['f32', 'int4'] as const)('is there as ranks compute: %s', async (format) => {
    const { spec } = (await pack(demoCheckpoint, format)).manifest
    proveRowInvariance({ stageDir, provider: 'cpu', avoidSaturation: false, format }, { ...spec, hidden: 256 })
  })

  // MatMulNBits with blocks of 128 treats the last row of an odd count apart: what a device might do.
  test('is found missing where it is missing', async () => {
    const { spec } = (await pack(demoCheckpoint, 'int4')).manifest
    const options = { stageDir, provider: 'cpu', avoidSaturation: false, format: 'int4' } as const
    const anyCount = () => ({ multiple: 1, max: Number.MAX_SAFE_INTEGER })
    expect(() => proveRowInvariance(options, { ...spec, hidden: 256 }, anyCount)).toThrow(
      expect.objectContaining({ code: 'PROVIDER_UNAVAILABLE', message: expect.stringContaining('other bits') }),
    )
  })
})

test('rows are padded to what the provider’s kernels ask for', () => {
  expect(paddedRows(5, productRows('webgpu', 'int4', [96, 64]))).toBe(8)
  expect(paddedRows(5, productRows('cuda', 'f32', [96, 64]))).toBe(16)
  expect(paddedRows(5, productRows('cuda', 'int4', [96, 64]))).toBe(5)
  expect(paddedRows(5, productRows('cuda', 'int4', [32, 12]))).toBe(16)
  expect(paddedRows(5, productRows('cpu', 'int4', [256, 96]))).toBe(6)
  expect(paddedRows(5, productRows('cpu', 'f32', [256, 128]))).toBe(5)
})
