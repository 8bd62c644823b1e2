import { cpSync, mkdirSync, mkdtempSync, rmSync, utimesSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { demoModel, preparePack } from '../../services/cli/model.ts'
import { openPack } from '../../services/pack/reader.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'moesh-model-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

test('a checkpoint is packed once, a rewritten one again, and a pack is taken as it is', async () => {
  const model = join(directory, 'tales')
  cpSync(demoModel, model, { recursive: true })
  const options = { model, cache: join(directory, 'cache'), format: 'int8' } as const
  const first = await preparePack(options)
  expect(openPack(first).manifest).toMatchObject({ name: 'tales', weightFormat: 'int8' })
  expect(await preparePack(options)).toBe(first)
  expect(await preparePack({ ...options, model: first })).toBe(first)
  utimesSync(join(model, 'model.safetensors'), 1, 1)
  expect(await preparePack(options)).not.toBe(first)
})

test('what is neither is refused with what to name', async () => {
  const options = { cache: join(directory, 'cache'), format: 'int8' } as const
  await expect(preparePack({ ...options, model: join(directory, 'none') })).rejects.toThrow(
    /is not a directory; name a pack/,
  )
  mkdirSync(join(directory, 'empty'))
  await expect(preparePack({ ...options, model: join(directory, 'empty') })).rejects.toThrow(/it has no config.json/)
})
