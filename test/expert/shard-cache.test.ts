import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import type { MoeshError } from '../../services/config/errors.ts'
import { ShardCache, type ShardCacheOptions } from '../../services/expert/shard-cache.ts'
import { refOf, shardBytes, spillIn, TestSource, temporaryDirectory } from './shards.ts'

async function openCache(root: string, options: Partial<ShardCacheOptions> = {}) {
  const reports: MoeshError[] = []
  const cache = await ShardCache.open({
    dir: join(root, 'cache'),
    spillDir: () => spillIn(root),
    bytesMax: 10_000,
    report: (error) => reports.push(error),
    ...options,
  })
  return { cache, reports }
}

const fileOf = (root: string, sha256: string) => join(root, 'cache', `${sha256}.shard`)
const content = shardBytes(1, 1000)
const ref = refOf(content)

test('a shard is fetched once and then found, also by the next process', async () => {
  const root = temporaryDirectory()
  const source = new TestSource(content)
  for (let life = 0; life < 2; life++) {
    const { cache, reports } = await openCache(root)
    for (let i = 0; i < 2; i++) {
      const file = await cache.acquire(ref, source.bytes)
      expect(Buffer.compare(readFileSync(file.path), content)).toBe(0)
      await file.release()
    }
    expect(cache.find(ref.sha256)).toEqual({ path: fileOf(root, ref.sha256), offset: 0, bytes: 1000 })
    expect(cache.usedBytes()).toBe(1000)
    expect(reports).toEqual([])
  }
  expect(source.offsets).toEqual([0])
})

test('those who ask at the same time share one transfer', async () => {
  const { cache } = await openCache(temporaryDirectory())
  const source = new TestSource(content)
  await Promise.all(Array.from({ length: 5 }, () => cache.acquire(ref, source.bytes)))
  expect(source.offsets).toEqual([0])
})

test.each([
  {
    damage: 'a byte changed',
    apply: (path: string) => {
      const bytes = readFileSync(path)
      bytes[500] = (bytes[500] ?? 0) ^ 1
      writeFileSync(path, bytes)
    },
  },
  { damage: 'the end is missing', apply: (path: string) => truncateSync(path, 999) },
  { damage: 'bytes were added', apply: (path: string) => writeFileSync(path, 'x', { flag: 'a' }) },
])('a file whose content is wrong ($damage) is reported and fetched again', async ({ apply }) => {
  const root = temporaryDirectory()
  const { cache, reports } = await openCache(root)
  const source = new TestSource(content)
  await (await cache.acquire(ref, source.bytes)).release()
  apply(fileOf(root, ref.sha256))
  const file = await cache.acquire(ref, source.bytes)
  expect(Buffer.compare(readFileSync(file.path), content)).toBe(0)
  expect(source.offsets).toEqual([0, 0])
  expect(reports.map(({ code }) => code)).toEqual(['PACK_DIGEST'])
  expect(cache.usedBytes()).toBe(1000)
})

test('a file that somebody deleted is fetched again', async () => {
  const root = temporaryDirectory()
  const { cache, reports } = await openCache(root)
  const source = new TestSource(content)
  await (await cache.acquire(ref, source.bytes)).release()
  rmSync(fileOf(root, ref.sha256))
  await cache.acquire(ref, source.bytes)
  expect(source.offsets).toEqual([0, 0])
  expect(reports).toEqual([])
})

test('bytes that are not the shard are refused and nothing of them is kept', async () => {
  const root = temporaryDirectory()
  const { cache } = await openCache(root)
  for (const wrong of [shardBytes(2, 1000), shardBytes(1, 1001), Buffer.concat([content, content])]) {
    await expect(cache.acquire(ref, new TestSource(wrong).bytes)).rejects.toMatchObject({ code: 'PACK_DIGEST' })
  }
  expect(readdirSync(join(root, 'cache'))).toEqual([])
  const source = new TestSource(content)
  await cache.acquire(ref, source.bytes)
  expect(source.offsets).toEqual([0])
})

test('a transfer that broke off goes on where it stopped, from whomever', async () => {
  const { cache } = await openCache(temporaryDirectory())
  const first = new TestSource(content)
  first.breaksAt = 400
  await expect(cache.acquire(ref, first.bytes)).rejects.toThrow('broke off')
  const short = new TestSource(content.subarray(0, 700))
  await expect(cache.acquire(ref, short.bytes)).rejects.toMatchObject({ code: 'NODE_LOST' })
  const second = new TestSource(content)
  const file = await cache.acquire(ref, second.bytes)
  expect([first, short, second].map(({ offsets }) => offsets)).toEqual([[0], [400], [700]])
  expect(Buffer.compare(readFileSync(file.path), content)).toBe(0)
})

test("an ended process's transfer goes on, a living one's is left alone", async () => {
  const root = temporaryDirectory()
  const dir = join(root, 'cache')
  mkdirSync(dir)
  const other = refOf(shardBytes(3, 1000))
  const abandoned = join(dir, `${ref.sha256}.00000000.part`)
  const living = join(dir, `${other.sha256}.11111111.part`)
  writeFileSync(abandoned, content.subarray(0, 300))
  writeFileSync(living, shardBytes(3, 1000).subarray(0, 300))
  utimesSync(abandoned, 1, 1)
  const { cache } = await openCache(root)
  const sources = [new TestSource(content), new TestSource(shardBytes(3, 1000))] as const
  await cache.acquire(ref, sources[0].bytes)
  await cache.acquire(other, sources[1].bytes)
  expect(sources.map(({ offsets }) => offsets)).toEqual([[300], [0]])
  expect(existsSync(living)).toBe(true)
})

test('what was not used for longest makes room; what is in use stays', async () => {
  const root = temporaryDirectory()
  const { cache } = await openCache(root, { bytesMax: 3000 })
  const all = [0, 1, 2, 3, 4].map((salt) => shardBytes(salt, 1000))
  const acquire = (i: number) => {
    const bytes = all[i] ?? content
    return cache.acquire(refOf(bytes), new TestSource(bytes).bytes)
  }
  const used = await acquire(0)
  for (const i of [1, 2]) await (await acquire(i)).release()
  await (await acquire(1)).release()
  await (await acquire(3)).release()
  expect(cache.usedBytes()).toBe(3000)
  const present = all.map((bytes) => existsSync(fileOf(root, refOf(bytes).sha256)))
  expect(present).toEqual([true, true, false, true, false])
  await used.release()
  await acquire(4)
  expect(existsSync(fileOf(root, refOf(all[0] ?? content).sha256))).toBe(false)
})

test('a shard without room in the cache lies elsewhere for the time of its use', async () => {
  const root = temporaryDirectory()
  const { cache } = await openCache(root, { bytesMax: 1000 })
  await cache.acquire(ref, new TestSource(content).bytes)
  const more = shardBytes(2, 1000)
  const spilled = await cache.acquire(refOf(more), new TestSource(more).bytes)
  expect(spilled.path.startsWith(join(root, 'spill'))).toBe(true)
  expect(Buffer.compare(readFileSync(spilled.path), more)).toBe(0)
  expect(cache.find(refOf(more).sha256)).toBeUndefined()
  await spilled.release()
  expect(readdirSync(join(root, 'spill'))).toEqual([])
})

const full = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' })

test('a full disk is reported and gone round', async () => {
  const root = temporaryDirectory()
  let written = 0
  const { cache, reports } = await openCache(root, {
    write: async (file, path, chunk) => {
      written += chunk.length
      if (path.startsWith(join(root, 'cache')) && written > 500) throw full
      await file.writeFile(chunk)
    },
  })
  const file = await cache.acquire(ref, new TestSource(content).bytes)
  expect(Buffer.compare(readFileSync(file.path), content)).toBe(0)
  expect(file.path.startsWith(join(root, 'spill'))).toBe(true)
  expect(reports.map(({ code }) => code)).toEqual(['MEMORY_EXHAUSTED'])
  // The room that the beginning took is free again.
  expect(readdirSync(join(root, 'cache'))).toEqual([])
})

test('without room anywhere it says so', async () => {
  const root = temporaryDirectory()
  const { cache } = await openCache(root, {
    write: async () => {
      throw full
    },
  })
  await expect(cache.acquire(ref, new TestSource(content).bytes)).rejects.toMatchObject({ code: 'MEMORY_EXHAUSTED' })
})

test('a directory that cannot be used is reported once, and the node gets its shards all the same', async () => {
  const root = temporaryDirectory()
  writeFileSync(join(root, 'cache'), 'a file')
  const { cache, reports } = await openCache(root)
  const file = await cache.acquire(ref, new TestSource(content).bytes)
  expect(Buffer.compare(readFileSync(file.path), content)).toBe(0)
  expect(reports.map(({ code }) => code)).toEqual(['MEMORY_EXHAUSTED'])
})

test('what others keep in the directory stays', async () => {
  const root = temporaryDirectory()
  mkdirSync(join(root, 'cache'))
  writeFileSync(join(root, 'cache', 'notes.txt'), 'mine')
  const { cache } = await openCache(root, { bytesMax: 1000 })
  await (await cache.acquire(ref, new TestSource(content).bytes)).release()
  const more = shardBytes(2, 1000)
  await cache.acquire(refOf(more), new TestSource(more).bytes)
  expect(readFileSync(join(root, 'cache', 'notes.txt'), 'utf8')).toBe('mine')
})
