import { setTimeout as sleep } from 'node:timers/promises'
import { credentials, loadPackageDefinition, Server, ServerCredentials } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import { extendNames } from '../../services/coordinator/block-names.ts'
import type { KvExchange } from '../../services/coordinator/kv-exchange.ts'
import { decodeReadRequest, encodeReadRequest } from '../../services/coordinator/prefixes/kv-messages.ts'
import { connectKvPeer } from '../../services/coordinator/prefixes/kv-peer.ts'
import { addKvService } from '../../services/coordinator/prefixes/kv-service.ts'
import { SharedPrefixes, type SharedPrefixesOptions } from '../../services/coordinator/prefixes/shared-prefixes.ts'
import type { EngineRequest } from '../../services/coordinator/request.ts'
import { kvBlockTokens } from '../../services/coordinator/team/kv-cache.ts'
import { greedy } from '../support/running-model.ts'

/** Larger than a message. */
const blockBytes = 600_000

/** A cache of so many blocks at most; a block's bytes are those of its name, repeated. */
class FakeExchange implements KvExchange {
  readonly blockBytes = blockBytes
  readonly blocks = new Map<string, Uint8Array>()
  room = 1000
  eraNumber = 0
  freeBlocks = 1000
  refreshed: string[] = []
  #changes = new Map<string, boolean>()

  era = () => this.eraNumber
  names = () => [...this.blocks.keys()]
  held = (names: readonly string[]) => {
    const gap = names.findIndex((name) => !this.blocks.has(name))
    return gap < 0 ? names.length : gap
  }
  read = async (name: string) => this.blocks.get(name) ?? null
  write = async (name: string, block: Uint8Array, era: number) => {
    if (era !== this.eraNumber || this.blocks.size >= this.room) return false
    expect(Buffer.compare(block, contentOf(name))).toBe(0)
    this.put(name)
    return true
  }
  free = () => this.freeBlocks
  refresh = (names: readonly string[]) => {
    this.refreshed = [...names]
  }
  changes = () => {
    const changes = this.#changes
    this.#changes = new Map()
    return changes
  }
  put(...names: string[]): void {
    for (const name of names) {
      this.blocks.set(name, contentOf(name))
      this.#changes.set(name, true)
    }
  }
  drop(name: string): void {
    this.blocks.delete(name)
    this.#changes.set(name, false)
  }
}

const contentOf = (name: string) => new Uint8Array(Buffer.alloc(blockBytes, Buffer.from(name, 'hex')))

const promptIds = Array.from({ length: 10 * kvBlockTokens + 1 }, (_, i) => i)
const names: string[] = []
extendNames(names, promptIds, 'salt', 10)
const request: EngineRequest = {
  ...{ id: 'r', promptIds, candidates: 1, sampling: greedy, priority: 0, cacheSalt: 'salt' },
  output: { logprobs: null, promptLogprobs: null, expertTrace: false, promptExpertTrace: false },
}

/** Coordinators that share a store, each with a server of its own. */
class World {
  readonly store = createMemoryStore({ nowMs: () => performance.now() })
  readonly members = new Map<string, { address: string; kv: FakeExchange; prefixes: SharedPrefixes }>()
  readonly failures: unknown[] = []
  era = 'era 1'

  async add(id: string, options: Partial<SharedPrefixesOptions> = {}) {
    const kv = new FakeExchange()
    const server = new Server()
    addKvService(server, { kv, era: () => this.era, onSent: () => {} })
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      )
    })
    const address = `127.0.0.1:${port}`
    const prefixes = new SharedPrefixes({
      self: id,
      kv,
      store: this.store,
      coordinators: () =>
        [...this.members].filter(([other]) => other !== id).map(([other, it]) => ({ id: other, ...it })),
      era: () => this.era,
      connect: ({ address: to }) => connect(to),
      msPerToken: () => 100,
      nowMs: () => performance.now(),
      onFailure: (_, error) => this.failures.push(error),
      ...options,
    })
    onTestFinished(() => {
      prefixes.close()
      server.forceShutdown()
    })
    const member = { address, kv, prefixes, server }
    this.members.set(id, member)
    return member
  }
}

const connect = (address: string) =>
  connectKvPeer({ address, credentials: credentials.createInsecure(), channelOptions: {} })
const never = new AbortController().signal

let world: World
beforeEach(() => {
  world = new World()
})

describe('a prompt that another coordinator has read', () => {
  test('is taken over from the one that has most of it, as far as that goes', async () => {
    const [a, b, c] = [await world.add('a'), await world.add('b'), await world.add('c')]
    a.kv.put(...names.slice(0, 5))
    b.kv.put(...names.slice(0, 8))
    for (const { prefixes } of [a, b, c]) await prefixes.announce()
    await c.prefixes.prepare(request, never)
    expect(c.kv.names()).toEqual(names.slice(0, 8))
    expect(c.kv.refreshed).toEqual(names)
    expect(c.prefixes.fetchedTokens).toBe(8 * kvBlockTokens)
    expect(world.failures).toEqual([])
    // The two blocks that are missing are not worth it.
    b.kv.put(...names)
    await b.prefixes.announce()
    expect(c.prefixes.prepare(request, never)).toBeNull()
  })

  test('is not waited for without another coordinator, a long prompt, or a store; nor where the prompt is scored', async () => {
    const a = await world.add('a')
    expect(a.prefixes.prepare(request, never)).toBeNull()
    const b = await world.add('b', { store: { ...world.store, health: () => ({ reachable: false, roundTripMs: 0 }) } })
    expect(b.prefixes.prepare(request, never)).toBeNull()
    expect(a.prefixes.prepare({ ...request, promptIds: promptIds.slice(0, 4 * kvBlockTokens) }, never)).toBeNull()
    expect(a.prefixes.prepare({ ...request, output: { ...request.output, promptLogprobs: 0 } }, never)).toBeNull()
    const nothing = a.prefixes.prepare(request, never)
    expect(nothing).not.toBeNull()
    await nothing
    expect(a.kv.names()).toEqual([])
  })

  test('is asked for once by requests that come together', async () => {
    const [a, b] = [await world.add('a'), await world.add('b')]
    a.kv.put(...names)
    await a.prefixes.announce()
    let finds = 0
    const { kvFind } = world.store
    world.store.kvFind = (...asked) => {
      finds += 1
      return kvFind(...asked)
    }
    await Promise.all([b.prefixes.prepare(request, never), b.prefixes.prepare(request, never)])
    expect(finds).toBe(1)
    expect(b.prefixes.fetchedTokens).toBe(10 * kvBlockTokens)
  })

  test('what went meanwhile ends it, and what has gone is not asked for', async () => {
    const [a, b] = [await world.add('a'), await world.add('b')]
    a.kv.put(...names)
    await a.prefixes.announce()
    a.kv.drop(names[6] ?? '')
    await b.prefixes.prepare(request, never)
    expect(b.kv.names()).toEqual(names.slice(0, 6))
    await a.prefixes.announce()
    expect(
      await world.store.kvFind(
        ['a'],
        names.map((name) => name.slice(0, 32)),
      ),
    ).toEqual(new Map([['a', 6]]))
  })

  test('is computed where the other one is in another era, has gone, or is too slow, and where there is no room', async () => {
    const [a, b] = [await world.add('a'), await world.add('b')]
    a.kv.put(...names)
    await a.prefixes.announce()
    b.kv.freeBlocks = 3
    await b.prefixes.prepare(request, never)
    expect(b.kv.names()).toEqual([])
    b.kv.freeBlocks = 7
    b.kv.room = 5
    await b.prefixes.prepare(request, never)
    expect(b.kv.names()).toEqual(names.slice(0, 5))
    expect(world.failures).toEqual([])

    const other = await world.add('other', { era: () => 'era 0' })
    await other.prefixes.prepare(request, never)
    expect(other.kv.names()).toEqual([])
    expect(String(world.failures.pop())).toMatch(/computed otherwise/)

    const late = await world.add('late', { msPerToken: () => 0.1 })
    a.kv.read = async () => {
      await sleep(200)
      return null
    }
    const startedMs = performance.now()
    await late.prefixes.prepare(request, never)
    expect(performance.now() - startedMs).toBeLessThan(190)
    const hangs = { ...world.store, kvFind: () => new Promise<never>(() => {}) }
    await (await world.add('hung', { msPerToken: () => 0.1, store: hangs })).prefixes.prepare(request, never)
    expect(world.failures).toEqual([])

    a.server.forceShutdown()
    const last = await world.add('last')
    await last.prefixes.prepare(request, never)
    expect(last.kv.names()).toEqual([])
    expect(world.failures).toHaveLength(1)
  })

  test('an era that ends on the way ends it', async () => {
    const [a, b] = [await world.add('a'), await world.add('b')]
    a.kv.put(...names)
    await a.prefixes.announce()
    const read = a.kv.read
    a.kv.read = async (name) => {
      if (name === names[8]) {
        await sleep(100)
        world.era = 'era 2'
      }
      return read(name)
    }
    await b.prefixes.prepare(request, never)
    expect(b.kv.names()).toEqual(names.slice(0, 8))
  })

  test('a client that goes ends the wait', async () => {
    const [a, b] = [await world.add('a'), await world.add('b')]
    a.kv.put(...names)
    await a.prefixes.announce()
    const gone = new AbortController()
    a.kv.read = () => new Promise(() => gone.abort())
    await b.prefixes.prepare(request, gone.signal)
    expect(b.kv.names()).toEqual([])
    expect(world.failures).toEqual([])
  })

  test('who comes later hears of everything, and a failed announcement is made up for', async () => {
    const a = await world.add('a')
    a.kv.put(...names.slice(0, 5))
    await a.prefixes.announce()
    const b = await world.add('b')
    const { kvAnnounce } = world.store
    world.store.kvAnnounce = async () => {
      throw new Error('away')
    }
    await expect(a.prefixes.announce()).rejects.toThrow('away')
    world.store.kvAnnounce = kvAnnounce
    await a.prefixes.announce()
    await b.prefixes.prepare(request, never)
    expect(b.kv.names()).toEqual(names.slice(0, 5))
  })
})

test('the messages are as the proto has them', () => {
  const definition = loadPackageDefinition(loadSync('proto/moesh/internal/v1/kv.proto', { keepCase: true }))
  const { Read } = (definition as never as Proto).moesh.internal.v1.KvService.service
  const message = { era: 'présent', names: names.slice(0, 3) }
  const encoded = encodeReadRequest(message)
  expect(Read.requestDeserialize(encoded)).toMatchObject({
    era: 'présent',
    names: Buffer.from(message.names.join(''), 'hex'),
  })
  expect(decodeReadRequest(Read.requestSerialize(Read.requestDeserialize(encoded)))).toEqual(message)
  expect(Read.path).toBe('/moesh.internal.v1.KvService/Read')
  expect(() => decodeReadRequest(encoded.subarray(0, -1))).toThrow()
})

type Proto = {
  moesh: {
    internal: {
      v1: {
        KvService: {
          service: {
            Read: { path: string; requestSerialize(value: object): Buffer; requestDeserialize(bytes: Buffer): object }
          }
        }
      }
    }
  }
}
