import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { encodeHeld } from '../../services/cluster/held.ts'
import { emptyStatus, type NodeEntry } from '../../services/cluster/node.ts'
import { MoeshError } from '../../services/config/errors.ts'
import { openSecurity } from '../../services/config/tls.ts'
import { RateLimit } from '../../services/dispatch/rate-limit.ts'
import { Peers } from '../../services/expert/peers.ts'
import { ShardCache } from '../../services/expert/shard-cache.ts'
import type { ShardPeer } from '../../services/expert/shard-peer.ts'
import { ShardSources } from '../../services/expert/shard-sources.ts'
import type { Manifest } from '../../services/pack/manifest.ts'
import { PackReader } from '../../services/pack/reader.ts'
import { FakeClock } from '../dispatch/fake-clock.ts'
import { model } from '../dispatch/transport-contract.ts'
import { refOf, shardBytes, spillIn, temporaryDirectory } from './shards.ts'

const contents = [0, 1, 2].map((salt) => shardBytes(salt, 1000))

const manifest: Manifest = {
  formatVersion: 1,
  tool: 'test',
  name: 'test-model',
  weightFormat: 'f32',
  spec: model,
  parameters: { total: 1, active: 1 },
  license: 'unknown',
  source: '',
  provenance: {},
  generation: { temperature: null, topP: null, topK: null, minP: null, repetitionPenalty: null },
  tokenizer: null,
  chatTemplate: null,
  files: [],
  tensors: [],
  shards: contents.map((content, expert) => ({
    layer: 0,
    expert,
    file: 'experts.bin',
    offset: expert * 4096,
    ...refOf(content),
  })),
}

/** A peer that gives the given shards, or fails as told. */
function peer(name: string, held: readonly Buffer[], failure: MoeshError | null = null) {
  const asked: string[] = []
  const made: ShardPeer = {
    name,
    manifest: async () => new Uint8Array(0),
    async *fetch(sha256, offset) {
      asked.push(sha256)
      const content = held.find((one) => refOf(one).sha256 === sha256)
      if (failure === null && content === undefined) throw new MoeshError('EXPERT_NOT_HELD', 'not here')
      for (let at = offset; at < (content?.length ?? 1000); at += 250) {
        if (failure !== null && at >= 500) throw failure
        yield (content ?? contents[0] ?? Buffer.alloc(0)).subarray(at, at + 250)
      }
      if (failure !== null) throw failure
    },
    close: () => {},
  }
  return Object.assign(made, { asked })
}

async function sourcesOf(peers: readonly ShardPeer[], packed: boolean) {
  const root = temporaryDirectory()
  const reports: MoeshError[] = []
  const cache = await ShardCache.open({
    dir: join(root, 'cache'),
    spillDir: () => spillIn(root),
    bytesMax: 100_000,
    report: (error) => reports.push(error),
  })
  const file = join(root, 'experts.bin')
  const bytes = Buffer.alloc(3 * 4096)
  for (const [expert, content] of contents.entries()) bytes.set(content, expert * 4096)
  writeFileSync(file, bytes)
  const sources = new ShardSources({
    manifest,
    pack: packed ? new PackReader(root, manifest, 'd'.repeat(64)) : null,
    cache,
    peers: () => peers,
    limit: new RateLimit(Number.POSITIVE_INFINITY, new FakeClock()),
    report: (error) => reports.push(error),
  })
  return { sources, reports, file }
}

function read({ path, offset, bytes }: { path: string; offset: number; bytes: number }): Buffer {
  return readFileSync(path).subarray(offset, offset + bytes)
}

test('the pack of this machine is read where it lies', async () => {
  const other = peer('p', contents)
  const { sources, file } = await sourcesOf([other], true)
  const { source } = await sources.get({ layer: 0, expert: 2 })
  expect(source).toEqual({ layer: 0, expert: 2, path: file, offset: 8192, bytes: 1000 })
  expect(other.asked).toEqual([])
  expect(sources.find(refOf(contents[1] ?? Buffer.alloc(0)).sha256)).toEqual({ path: file, offset: 4096, bytes: 1000 })
})

test('a damaged shard of the pack is reported and comes from another node', async () => {
  const { sources, reports, file } = await sourcesOf([peer('p', contents)], true)
  const bytes = readFileSync(file)
  bytes[4096 + 17] = 1 + (bytes[4096 + 17] ?? 0)
  writeFileSync(file, bytes)
  const { source } = await sources.get({ layer: 0, expert: 1 })
  expect(Buffer.compare(read(source), contents[1] ?? Buffer.alloc(0))).toBe(0)
  expect(source.path).not.toBe(file)
  expect(reports.map(({ code }) => code)).toEqual(['PACK_DIGEST'])
})

test('peers are asked in order until one delivers, and a begun transfer goes on', async () => {
  const lost = new MoeshError('NODE_LOST', 'gone')
  const peers = [peer('empty', []), peer('dying', contents, lost), peer('good', contents)]
  const { sources, reports } = await sourcesOf(peers, false)
  const { source, release } = await sources.get({ layer: 0, expert: 0 })
  expect(Buffer.compare(read(source), contents[0] ?? Buffer.alloc(0))).toBe(0)
  await release()
  expect(reports).toEqual([lost])
  for (const { asked } of peers) expect(asked.length).toBe(1)
})

test('a peer with wrong bytes is found out, and the next one asked', async () => {
  const liar = peer('liar', [])
  liar.fetch = async function* () {
    yield shardBytes(9, 1000)
  }
  const { sources, reports } = await sourcesOf([liar, peer('good', contents)], false)
  const { source } = await sources.get({ layer: 0, expert: 0 })
  expect(Buffer.compare(read(source), contents[0] ?? Buffer.alloc(0))).toBe(0)
  expect(reports.map(({ code }) => code)).toEqual(['PACK_DIGEST'])
})

test('a cached shard needs nobody; without it and without anybody it says so', async () => {
  const peers: ShardPeer[] = [peer('p', contents)]
  const { sources } = await sourcesOf(peers, false)
  await (await sources.get({ layer: 0, expert: 0 })).release()
  peers.length = 0
  await (await sources.get({ layer: 0, expert: 0 })).release()
  await expect(sources.get({ layer: 0, expert: 1 })).rejects.toMatchObject({ code: 'STARTING' })
  await expect(sources.get({ layer: 3, expert: 1 })).rejects.toThrow('test-model has no shard L3/E1')
})

test('nodes that hold a shard are asked before coordinators, in turns, and never oneself', async () => {
  const security = await openSecurity({ role: 'expert', listen: [], report: () => {} })
  const peers = new Peers('me', security)
  const entry = (id: string, role: 'coordinator' | 'expert', experts: number[] = []): NodeEntry => ({
    record: {
      id,
      incarnation: '1',
      role,
      address: '127.0.0.1:1',
      zone: '',
      memoryBytes: 0,
      ranks: 1,
      provider: 'cpu',
      numerics: '',
      protocolVersion: 1,
      version: '',
      modelDigest: '',
    },
    status: { ...emptyStatus, held: encodeHeld(new Map([[3, experts]])) },
  })
  peers.update([
    entry('c', 'coordinator'),
    entry('a', 'expert', [0, 1, 9]),
    entry('b', 'expert', [1, 9]),
    entry('me', 'expert', [0, 1, 9]),
  ])
  const names = (expert: number) => peers.holders({ layer: 3, expert }).map(({ name }) => name)
  expect(names(0)).toEqual(['a', 'c'])
  expect(names(1)).toEqual(['a', 'b', 'c'])
  expect(peers.holders({ layer: 2, expert: 9 }).map(({ name }) => name)).toEqual(['c'])
  expect(names(8)).toEqual(['c'])
  peers.update([entry('b', 'expert', [1])])
  expect(names(1)).toEqual(['b'])
  peers.close()
})
