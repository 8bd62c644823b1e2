import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'
import type { WeightFormat } from '../../services/model/format.ts'
import { packCheckpoint } from '../../services/pack/pack.ts'
import { openPack, type PackReader } from '../../services/pack/reader.ts'

/** Packs made for one test file, each once, and removed at its end. */
export function testPacks(): (checkpoint: string, format: WeightFormat) => Promise<PackReader> {
  const directory = mkdtempSync(join(tmpdir(), 'moesh-packs-'))
  const packs = new Map<string, Promise<PackReader>>()
  afterAll(() => rmSync(directory, { recursive: true, force: true }))
  return (checkpoint, format) => {
    const key = `${checkpoint}/${format}`
    const known = packs.get(key)
    if (known) return known
    const target = join(directory, String(packs.size))
    const made = packCheckpoint(checkpoint, target, { format }).then(() => openPack(target))
    packs.set(key, made)
    return made
  }
}

export const repository = join(import.meta.dirname, '..', '..')
export const demoCheckpoint = join(repository, 'models', 'tales-moe')
