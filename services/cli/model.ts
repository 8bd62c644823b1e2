import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { openCheckpoint } from '../checkpoint/checkpoint.ts'
import { MoeshError } from '../config/errors.ts'
import type { WeightFormat } from '../model/format.ts'
import { packCheckpoint } from '../pack/pack.ts'
import { looksLikePack } from '../pack/reader.ts'
import { packTool } from '../pack/tool.ts'
import { ProgressBar } from './progress.ts'

/** In the repository and in the image. */
export const demoModel = join(import.meta.dirname, '..', '..', 'models', 'tales-moe')

/** Where packs made of checkpoints, and shards, are kept unless `--cache` says otherwise. */
export function cacheDirectory(given: string | undefined): string {
  return given ?? join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'moesh')
}

export type ModelOptions = { model: string | undefined; cache: string | undefined; format: WeightFormat }

/**
 * The directory of a pack: the one given, or what a checkpoint was packed to, now or by an earlier start. Errors: USAGE,
 * CHECKPOINT_INVALID, MODEL_UNSUPPORTED, PACK_INVALID.
 */
export async function preparePack({ model, cache, format }: ModelOptions, signal?: AbortSignal): Promise<string> {
  const directory = model ?? demoModel
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new MoeshError('USAGE', `${directory} is not a directory`, 'name a pack or a checkpoint directory')
  }
  if (looksLikePack(directory)) return directory
  if (!existsSync(join(directory, 'config.json'))) {
    throw new MoeshError('USAGE', `${directory} is neither a pack nor a checkpoint: it has no config.json`)
  }
  const checkpoint = openCheckpoint(directory)
  checkpoint.close()
  // Another checkpoint at the same place, or another packer, gets a pack of its own.
  const key = createHash('sha256').update(`${checkpoint.fingerprint}\n${packTool}`).digest('hex').slice(0, 12)
  const packDirectory = join(cacheDirectory(cache), 'packs', `${checkpoint.name}-${format}-${key}`)
  mkdirSync(packDirectory, { recursive: true })
  const bar = new ProgressBar(`packing ${checkpoint.name} as ${format}`, process.stderr)
  try {
    await packCheckpoint(directory, packDirectory, {
      format,
      onProgress: (progress) => bar.update(progress),
      ...(signal === undefined ? {} : { signal }),
    })
  } finally {
    bar.end()
  }
  return packDirectory
}
