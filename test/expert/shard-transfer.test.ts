import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadPackageDefinition, Server, ServerCredentials } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import fc from 'fast-check'
import { expect, onTestFinished, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { RateLimit } from '../../services/dispatch/rate-limit.ts'
import {
  chunkBytes,
  decodeContent,
  decodeFetchRequest,
  decodeManifestRequest,
  encodeContent,
  encodeFetchRequest,
  encodeManifestRequest,
} from '../../services/dispatch/shard-messages.ts'
import { addShardService, type ShardServiceOptions } from '../../services/dispatch/shard-service.ts'
import { connectShardPeer, type ShardPeerOptions } from '../../services/expert/shard-peer.ts'
import { FakeClock } from '../dispatch/fake-clock.ts'
import { refOf, shardBytes, temporaryDirectory } from './shards.ts'

const shard = shardBytes(1, 2 * chunkBytes + 100)
const ref = refOf(shard)
const before = 4096
const manifest = Buffer.from('{"name":"test"}')

/** Serves one shard that lies inside a larger file. */
async function serveShard(
  options: Partial<ShardServiceOptions> = {},
  dial: Partial<ShardPeerOptions> = {},
  content = shard,
) {
  const path = join(temporaryDirectory(), 'experts.bin')
  writeFileSync(path, Buffer.concat([Buffer.alloc(before, 9), content, Buffer.alloc(500, 8)]))
  const server = new Server()
  addShardService(server, {
    library: {
      manifest: (digest) => (digest === null || digest === refOf(manifest).sha256 ? manifest : undefined),
      find: (sha256) =>
        sha256 === refOf(content).sha256 ? { path, offset: before, bytes: content.length } : undefined,
    },
    ...options,
  })
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    )
  })
  const address = `127.0.0.1:${port}`
  const peer = connectShardPeer({ name: 'peer', address, ...dial })
  onTestFinished(() => {
    peer.close()
    server.forceShutdown()
  })
  return { peer, server, address }
}

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = []
  for await (const chunk of chunks) all.push(chunk)
  return Buffer.concat(all)
}

test.each([0, 1, chunkBytes, shard.length - 1, shard.length])('a shard comes from byte %i on', async (offset) => {
  const { peer } = await serveShard()
  const received = await collect(peer.fetch(ref.sha256, offset))
  expect(Buffer.compare(received, shard.subarray(offset))).toBe(0)
})

test.each([
  { sha256: 'a'.repeat(64), offset: 0, code: 'EXPERT_NOT_HELD' },
  { sha256: '../../etc/passwd', offset: 0, code: 'INVALID_ARGUMENT' },
  { sha256: ref.sha256, offset: shard.length + 1, code: 'INVALID_ARGUMENT' },
])('a fetch of $sha256 from $offset on is refused as $code', async ({ sha256, offset, code }) => {
  const { peer } = await serveShard()
  await expect(collect(peer.fetch(sha256, offset))).rejects.toMatchObject({ code })
})

test('the manifest comes as it is, for the right digest', async () => {
  const { peer } = await serveShard()
  expect(Buffer.from(await peer.manifest(null))).toEqual(manifest)
  expect(Buffer.from(await peer.manifest(refOf(manifest).sha256))).toEqual(manifest)
  await expect(peer.manifest('b'.repeat(64))).rejects.toMatchObject({ code: 'MODEL_UNKNOWN' })
})

test('who may not have weights gets none', async () => {
  const { peer } = await serveShard({
    authorize: () => {
      throw new MoeshError('ROLE_DENIED', 'not you')
    },
  })
  await expect(collect(peer.fetch(ref.sha256, 0))).rejects.toMatchObject({ code: 'ROLE_DENIED' })
  await expect(peer.manifest(null)).rejects.toMatchObject({ code: 'ROLE_DENIED' })
})

test('a peer that dies, and one that says nothing any more, end the transfer', async () => {
  const serverClock = new FakeClock()
  const clock = new FakeClock()
  const slow = { bytesPerSecond: chunkBytes, clock: serverClock }
  const dying = await serveShard(slow)
  const lost = collect(dying.peer.fetch(ref.sha256, 0))
  lost.catch(() => {})
  await untilTimer(serverClock)
  dying.server.forceShutdown()
  await expect(lost).rejects.toMatchObject({ code: 'NODE_LOST' })
  const silentClock = new FakeClock()
  const silent = await serveShard({ ...slow, clock: silentClock }, { clock })
  const late = collect(silent.peer.fetch(ref.sha256, 0))
  late.catch(() => {})
  await untilTimer(clock)
  await clock.advance(5000)
  await expect(late).rejects.toMatchObject({ code: 'NODE_LATE' })
  // The senders wait for their turn at the rate, see that nobody listens, and close their files.
  for (const waiting of [serverClock, silentClock]) await waiting.advance(10_000)
})

async function untilTimer(clock: FakeClock): Promise<void> {
  while (clock.timers === 0) await new Promise(setImmediate)
}

test('transfers are bounded, and receivers that read no more and then vanish make room', async () => {
  const big = shardBytes(2, 64 * chunkBytes)
  const { peer, address } = await serveShard({}, {}, big)
  const { sha256 } = refOf(big)
  const stuck = Array.from({ length: 16 }, () => peer.fetch(sha256, 0)[Symbol.asyncIterator]())
  for (const chunks of stuck) await chunks.next()
  const other = connectShardPeer({ name: 'other', address })
  onTestFinished(() => other.close())
  await expect(collect(other.fetch(sha256, 0))).rejects.toMatchObject({ code: 'QUEUE_FULL' })
  for (const chunks of stuck.slice(8)) await chunks.return?.()
  peer.close()
  for (;;) {
    const received = await collect(other.fetch(sha256, 0)).catch((error: MoeshError) => error.code)
    if (received === 'QUEUE_FULL') continue
    expect(Buffer.isBuffer(received) && Buffer.compare(received, big)).toBe(0)
    break
  }
})

test('a rate is kept over all who share it', async () => {
  const clock = new FakeClock()
  const limit = new RateLimit(1000, clock)
  const passed: number[] = []
  for (const bytes of [100, 200, 300]) void limit.pass(bytes).then(() => passed.push(clock.nowMs()))
  await clock.advance(1000)
  expect(passed).toEqual([100, 300, 600])
  // What was not used for a tenth of a second may be used at once, and no more.
  await clock.advance(5000)
  void limit.pass(100).then(() => passed.push(clock.nowMs()))
  void limit.pass(100).then(() => passed.push(clock.nowMs()))
  await clock.advance(1000)
  expect(passed.slice(3)).toEqual([6000, 6100])
})

test('the messages are true to the .proto file', () => {
  type Method = {
    path: string
    requestDeserialize: (bytes: Buffer) => object
    requestSerialize: (value: object) => Buffer
    responseDeserialize: (bytes: Buffer) => object
  }
  const root = loadPackageDefinition(
    loadSync(join(import.meta.dirname, '../../proto/moesh/internal/v1/shards.proto'), {
      keepCase: true,
      longs: Number,
    }),
  ) as unknown as {
    moesh: { internal: { v1: { ShardService: { service: Record<'Fetch' | 'GetManifest', Method> } } } }
  }
  const { Fetch, GetManifest } = root.moesh.internal.v1.ShardService.service
  const request = { sha256: ref.sha256, offset: 2 ** 40 + 5 }
  expect(Fetch.requestDeserialize(encodeFetchRequest(request))).toEqual(request)
  expect(decodeFetchRequest(Fetch.requestSerialize(request))).toEqual(request)
  expect(GetManifest.requestDeserialize(encodeManifestRequest({ modelDigest: ref.sha256 }))).toEqual({
    model_digest: ref.sha256,
  })
  expect(decodeManifestRequest(GetManifest.requestSerialize({}))).toEqual({ modelDigest: null })
  expect(Fetch.responseDeserialize(encodeContent(Buffer.from('abc')))).toEqual({ data: Buffer.from('abc') })
  expect(GetManifest.responseDeserialize(encodeContent(Buffer.from('abc')))).toEqual({ manifest: Buffer.from('abc') })
})

test('random bytes are refused or read, never more', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      for (const decode of [decodeFetchRequest, decodeManifestRequest, decodeContent]) {
        try {
          decode(bytes)
        } catch (error) {
          expect(error).toBeInstanceOf(MoeshError)
        }
      }
    }),
    { seed: 21, numRuns: 2000 },
  )
})
