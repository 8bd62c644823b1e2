import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { MoeshError } from '../config/errors.ts'
import type { ShardEntry } from './manifest.ts'
import type { PackProgress } from './pack.ts'
import { openPack, type PackReader } from './reader.ts'

const chunkBytes = 4 * 1024 * 1024
/** What an error names of many damaged places. */
const namedMax = 8

export type PackVerification = { digest: string; files: number; shards: number; bytes: number }

/**
 * Reads every byte of a pack and compares every digest. Throws PACK_INVALID for a pack that cannot be opened, and
 * PACK_DIGEST, naming the damaged files and shards; CANCELLED by the signal.
 */
export async function verifyPack(
  dir: string,
  onProgress?: (progress: PackProgress) => void,
  signal?: AbortSignal,
): Promise<PackVerification> {
  const pack = openPack(dir)
  const { files, shards } = pack.manifest
  const bytesTotal = files.reduce((sum, { bytes }) => sum + bytes, 0)
  const damaged: string[] = []
  let bytesDone = 0
  for (const { name, bytes, sha256 } of files) {
    const inFile = shards.filter(({ file }) => file === name).sort((a, b) => a.offset - b.offset)
    const found = await digestFile(pack, name, bytes, inFile, async (count) => {
      bytesDone += count
      onProgress?.({ bytesDone, bytesTotal })
      if (signal?.aborted) throw new MoeshError('CANCELLED', `verifying ${dir} was interrupted`)
      await nextTurn()
    })
    for (const shard of found.damaged) damaged.push(`shard L${shard.layer}/E${shard.expert} in ${name}`)
    if (found.sha256 !== sha256 && found.damaged.length === 0) damaged.push(name)
  }
  if (damaged.length > 0) {
    const more = damaged.length > namedMax ? ` and ${damaged.length - namedMax} more` : ''
    throw new MoeshError(
      'PACK_DIGEST',
      `pack ${dir} is damaged: the digest does not match of ${damaged.slice(0, namedMax).join(', ')}${more}`,
      'remove it and pack the checkpoint again',
    )
  }
  return { digest: pack.digest, files: files.length, shards: shards.length, bytes: bytesTotal }
}

/** One pass for the file's digest and those of the shards in it (ascending offsets). */
async function digestFile(
  pack: PackReader,
  name: string,
  bytes: number,
  shards: readonly ShardEntry[],
  onBytes: (count: number) => Promise<void>,
): Promise<{ sha256: string; damaged: ShardEntry[] }> {
  const whole = createHash('sha256')
  const damaged: ShardEntry[] = []
  const chunk = Buffer.allocUnsafe(chunkBytes)
  const fd = openSync(pack.path(name), 'r')
  const read = async (from: number, to: number, shard: ShardEntry | null) => {
    const own = createHash('sha256')
    for (let at = from; at < to; ) {
      const part = chunk.subarray(0, Math.min(chunkBytes, to - at))
      const count = readSync(fd, part, 0, part.length, at)
      if (count === 0)
        throw new MoeshError('PACK_INVALID', `${pack.path(name)} ends at byte ${at}: it changed while it was read`)
      whole.update(part.subarray(0, count))
      if (shard) own.update(part.subarray(0, count))
      at += count
      await onBytes(count)
    }
    if (shard && own.digest('hex') !== shard.sha256) damaged.push(shard)
  }
  try {
    let end = 0
    for (const shard of shards) {
      await read(end, shard.offset, null)
      end = shard.offset + shard.bytes
      await read(shard.offset, end, shard)
    }
    await read(end, bytes, null)
  } finally {
    closeSync(fd)
  }
  return { sha256: whole.digest('hex'), damaged }
}
