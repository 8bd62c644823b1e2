import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { openCheckpoint } from '../checkpoint/checkpoint.ts'
import type { WeightFormat } from '../model/format.ts'
import { type PackOptions, type PackResult, packCheckpoint } from './pack.ts'
import { packTool } from './tool.ts'

/**
 * The pack of a checkpoint in a cache directory: made on the first call, found on the next. Its place depends on what
 * is packed (the checkpoint's fingerprint, the format) and by what, so a changed checkpoint gets a new one beside it.
 */
export async function packCached(
  checkpointDir: string,
  cacheDir: string,
  options: PackOptions,
): Promise<PackResult & { packDir: string }> {
  const packDir = cachedPackDir(checkpointDir, cacheDir, options.format, options.name)
  return { ...(await packCheckpoint(checkpointDir, packDir, options)), packDir }
}

function cachedPackDir(checkpointDir: string, cacheDir: string, format: WeightFormat, name?: string): string {
  const checkpoint = openCheckpoint(checkpointDir)
  checkpoint.close()
  const id = name ?? checkpoint.name
  const key = createHash('sha256').update([checkpoint.fingerprint, format, packTool, id].join('\0')).digest('hex')
  // The readable part may come from a user: nothing of it may leave the cache directory.
  return join(cacheDir, `${id.replaceAll(/[^\w.-]/g, '_').replace(/^\.+/, '_')}-${format}-${key.slice(0, 12)}`)
}
