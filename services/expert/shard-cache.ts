import { createHash, type Hash, randomBytes } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { mkdir, open, readdir, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import type { ShardPlace } from '../dispatch/shard-service.ts'

/** A shard by content. */
export type ShardRef = { sha256: string; bytes: number }

/** The bytes of a shard from an offset on, from wherever they can be had. */
export type ShardBytes = (offset: number) => AsyncIterable<Uint8Array>

export type ShardCacheOptions = {
  dir: string
  /** Files of shards that nobody uses are deleted, oldest first, so that all take no more. */
  bytesMax: number
  /** Names a directory for shards that the cache has no room for; such a file is deleted after its use. */
  spillDir: () => string
  /** Something was wrong and was dealt with: a damaged file, a full disk. */
  report: (error: MoeshError) => void
  /** Writes all of it; a parameter so that a test can have a full disk. */
  write?: (file: FileHandle, path: string, chunk: Uint8Array) => Promise<void>
}

/** A verified file, safe from deletion until it is released. */
export type ShardFile = { readonly path: string; release(): Promise<void> }

const suffix = '.shard'
const partSuffix = '.part'
/** A part that nobody wrote to for so long belongs to a process that has ended. */
const abandonedMs = 10_000
const readBytes = 256 * 1024

/** Digest of a piece of a file. */
export async function digestOf({ path, offset, bytes }: ShardPlace): Promise<string> {
  const hash = createHash('sha256')
  const file = await open(path, 'r')
  try {
    await hashInto(hash, file, offset, bytes)
  } finally {
    await file.close()
  }
  return hash.digest('hex')
}

/**
 * Shards on disk by digest, shared by the nodes of a machine and kept between their lives. A file is believed only after
 * it was read and its digest compared, each time that it is asked for. What cannot be written here (disk full, quota)
 * is written to the spill directory instead: a node must get its weights.
 */
export class ShardCache {
  readonly #options: ShardCacheOptions
  /** Shards by time of last use, oldest first. */
  readonly #entries = new Map<string, { bytes: number; users: number }>()
  readonly #filling = new Map<string, Promise<ShardFile>>()
  readonly #tag = randomBytes(4).toString('hex')
  #usedBytes = 0
  #isUsable = true
  #isFull = false

  private constructor(options: ShardCacheOptions) {
    this.#options = options
  }

  static async open(options: ShardCacheOptions): Promise<ShardCache> {
    const cache = new ShardCache(options)
    await cache.#readDirectory()
    return cache
  }

  usedBytes(): number {
    return this.#usedBytes
  }

  /** For peers: a shard that lies here, as far as is known. */
  find(sha256: string): ShardPlace | undefined {
    const entry = this.#entries.get(sha256)
    return entry && { path: this.#path(sha256), offset: 0, bytes: entry.bytes }
  }

  /**
   * The shard's file: from the cache if it is there and sound, else written from `source`. Errors: those of `source`;
   * PACK_DIGEST if its bytes are not the shard's; MEMORY_EXHAUSTED if there is no room anywhere.
   */
  async acquire(ref: ShardRef, source: ShardBytes): Promise<ShardFile> {
    // One fills, the others wait and then find it.
    for (let other = this.#filling.get(ref.sha256); other; other = this.#filling.get(ref.sha256)) {
      await other.catch(() => {})
    }
    const filling = this.#provide(ref, source)
    this.#filling.set(ref.sha256, filling)
    try {
      return await filling
    } finally {
      this.#filling.delete(ref.sha256)
    }
  }

  async #provide(ref: ShardRef, source: ShardBytes): Promise<ShardFile> {
    if (!this.#isUsable) return this.#spill(ref, source)
    if (await this.#isSound(ref)) return this.#use(ref)
    if (await this.#makeRoom(ref.bytes)) {
      try {
        await this.#fill(this.#options.dir, ref, source)
        this.#entries.set(ref.sha256, { bytes: ref.bytes, users: 0 })
        this.#usedBytes += ref.bytes
        this.#isFull = false
        return this.#use(ref)
      } catch (thrown) {
        if (!isDiskError(thrown)) throw thrown
        this.#tellFull(thrown)
      }
    }
    return this.#spill(ref, source)
  }

  /** Once, until something can be written again. */
  #tellFull(thrown: unknown): void {
    if (this.#isFull) return
    this.#isFull = true
    const why = thrown instanceof Error ? thrown.message : String(thrown)
    this.#options.report(
      new MoeshError('MEMORY_EXHAUSTED', `the shard cache ${this.#options.dir} cannot take a shard: ${why}`),
    )
  }

  async #spill(ref: ShardRef, source: ShardBytes): Promise<ShardFile> {
    let spillDir = 'the temporary directory'
    try {
      spillDir = this.#options.spillDir()
      const path = await this.#fill(spillDir, ref, source)
      return { path, release: () => rm(path, { force: true }) }
    } catch (thrown) {
      if (!isDiskError(thrown)) throw thrown
      throw new MoeshError('MEMORY_EXHAUSTED', `neither the shard cache nor ${spillDir} has room for a shard`, '', {
        cause: thrown,
      })
    }
  }

  /** Continues what is there of it; returns the finished file's path. */
  async #fill(dir: string, { sha256, bytes }: ShardRef, source: ShardBytes): Promise<string> {
    const part = join(dir, `${sha256}.${this.#tag}${partSuffix}`)
    const file = await open(part, 'a+')
    let isDone = false
    try {
      const hash = createHash('sha256')
      let at = Math.min((await file.stat()).size, bytes)
      await hashInto(hash, file, 0, at)
      const write = this.#options.write ?? writeAll
      if (at < bytes) {
        for await (const chunk of source(at)) {
          at += chunk.length
          if (at > bytes) break
          hash.update(chunk)
          await write(file, part, chunk)
        }
      }
      if (at < bytes) throw new MoeshError('NODE_LOST', `a shard's bytes ended at ${at} of ${bytes}`)
      isDone = true
      if (at > bytes || hash.digest('hex') !== sha256) {
        throw new MoeshError(
          'PACK_DIGEST',
          `what came as the shard ${sha256} has another digest`,
          'it is fetched again',
        )
      }
    } catch (thrown) {
      // What is wrong must not be continued, and a full disk needs the room; all else goes on from here next time.
      if (isDone || isDiskError(thrown)) await rm(part, { force: true })
      throw thrown
    } finally {
      await file.close()
    }
    const path = join(dir, dir === this.#options.dir ? `${sha256}${suffix}` : `${sha256}.${this.#tag}${suffix}`)
    await rename(part, path)
    return path
  }

  /** Whether the file is there and has its digest; one that has not is deleted. */
  async #isSound({ sha256, bytes }: ShardRef): Promise<boolean> {
    const path = this.#path(sha256)
    try {
      // Another node of this machine may have brought or deleted it.
      const { size } = await stat(path)
      if (size === bytes && (await digestOf({ path, offset: 0, bytes })) === sha256) {
        if (!this.#entries.has(sha256)) {
          this.#entries.set(sha256, { bytes, users: 0 })
          this.#usedBytes += bytes
        }
        return true
      }
      this.#options.report(new MoeshError('PACK_DIGEST', `${path} is damaged`, 'it is fetched again'))
      await rm(path, { force: true })
    } catch (thrown) {
      if (!isMissing(thrown)) this.#options.report(asMoeshError(thrown))
    }
    this.#drop(sha256)
    return false
  }

  #use({ sha256, bytes }: ShardRef): ShardFile {
    const entry = this.#entries.get(sha256) ?? { bytes, users: 0 }
    entry.users += 1
    this.#entries.delete(sha256)
    this.#entries.set(sha256, entry)
    const path = this.#path(sha256)
    const nowSeconds = Date.now() / 1000
    // The order of use outlives the process in the files' times; a read-only cache does without.
    utimes(path, nowSeconds, nowSeconds).catch(() => {})
    let isReleased = false
    return {
      path,
      release: async () => {
        if (isReleased) return
        isReleased = true
        entry.users -= 1
      },
    }
  }

  /** Deletes what was not used for longest; false if what is in use leaves no room. */
  async #makeRoom(bytes: number): Promise<boolean> {
    for (const [sha256, { users }] of this.#entries) {
      if (this.#usedBytes + bytes <= this.#options.bytesMax) break
      if (users > 0) continue
      await rm(this.#path(sha256), { force: true })
      this.#drop(sha256)
    }
    return this.#usedBytes + bytes <= this.#options.bytesMax
  }

  #drop(sha256: string): void {
    const entry = this.#entries.get(sha256)
    if (!entry) return
    this.#entries.delete(sha256)
    this.#usedBytes -= entry.bytes
  }

  #path(sha256: string): string {
    return join(this.#options.dir, `${sha256}${suffix}`)
  }

  async #readDirectory(): Promise<void> {
    const { dir } = this.#options
    try {
      await mkdir(dir, { recursive: true })
      const found: { sha256: string; bytes: number; usedMs: number }[] = []
      for (const name of await readdir(dir)) {
        const match = /^([0-9a-f]{64})(?:\.[0-9a-f]{8})?(\.shard|\.part)$/.exec(name)
        const [, sha256, kind] = match ?? []
        if (sha256 === undefined) continue
        const { size, mtimeMs } = await stat(join(dir, name))
        if (kind === suffix) found.push({ sha256, bytes: size, usedMs: mtimeMs })
        else if (Date.now() - mtimeMs > abandonedMs) await this.#adopt(name, sha256)
      }
      for (const { sha256, bytes } of found.sort((a, b) => a.usedMs - b.usedMs)) {
        this.#entries.set(sha256, { bytes, users: 0 })
        this.#usedBytes += bytes
      }
    } catch (thrown) {
      this.#isUsable = false
      const why = thrown instanceof Error ? thrown.message : String(thrown)
      this.#options.report(new MoeshError('MEMORY_EXHAUSTED', `the shard cache ${dir} cannot be used: ${why}`))
    }
  }

  /** An interrupted transfer goes on where it stopped. */
  async #adopt(name: string, sha256: string): Promise<void> {
    const { dir } = this.#options
    await rename(join(dir, name), join(dir, `${sha256}.${this.#tag}${partSuffix}`)).catch((thrown: unknown) => {
      // Another node was faster.
      if (!isMissing(thrown)) throw thrown
    })
  }
}

async function writeAll(file: FileHandle, _path: string, chunk: Uint8Array): Promise<void> {
  await file.writeFile(chunk)
}

async function hashInto(hash: Hash, file: FileHandle, offset: number, bytes: number): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(readBytes, Math.max(1, bytes)))
  for (let at = 0; at < bytes; ) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, bytes - at), offset + at)
    if (bytesRead === 0) break
    hash.update(buffer.subarray(0, bytesRead))
    at += bytesRead
  }
}

function isMissing(thrown: unknown): boolean {
  return hasCode(thrown, ['ENOENT'])
}

function isDiskError(thrown: unknown): boolean {
  return hasCode(thrown, ['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'EPERM', 'EIO', 'EFBIG', 'ENOENT'])
}

function hasCode(thrown: unknown, codes: readonly string[]): boolean {
  return thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string' && codes.includes(thrown.code)
}
