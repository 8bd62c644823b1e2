import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { ConnectionOptions } from 'node:tls'
import { Cluster, Redis } from 'ioredis'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { describeStoreUrl, type StoreUrl } from './store-url.ts'

/** PEM texts for a store behind TLS. */
export type StoreTls = ConnectionOptions

/** A command that is not answered by then fails for its caller; that it may still be applied, scripts allow for. */
const commandTimeoutMs = 1000
const connectTimeoutMs = 2000
/** The sooner a store that was away is found again, the sooner it knows what it lost. */
const reconnectMsMax = 500
/** ZMSCORE and the reply types that scripts use came with it. */
const versionMin = [6, 2]

/**
 * A connection that says quickly when it cannot: no queue of commands for later (a renewed lease that is sent after it
 * ended is worse than none), one retry, a time limit each.
 */
export class RedisClient {
  readonly #client: Redis | Cluster
  readonly #subscriber: Redis | Cluster
  readonly #where: string
  #lastError = ''
  #isReachable = false
  #roundTripMs = 0

  constructor(url: Exclude<StoreUrl, { kind: 'memory' }>, tls: StoreTls = {}) {
    this.#where = describeStoreUrl(url)
    this.#client = connect(url, tls, false)
    this.#subscriber = connect(url, tls, true)
    // Without listeners an error event would end the process.
    this.#client.on('error', (error: Error) => {
      this.#lastError = error.message
    })
    this.#subscriber.on('error', () => {})
    this.#client.on('close', () => {
      this.#isReachable = false
    })
  }

  /** Settles when the server answers, and is one that we can use; STORE_UNREACHABLE or PROVIDER_UNAVAILABLE otherwise. */
  async open(waitMs: number): Promise<void> {
    const isReady = new Promise<void>((resolve) => {
      this.#client.once('ready', resolve)
    })
    let timer: NodeJS.Timeout | undefined
    const isLate = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, waitMs)
    })
    for (const client of [this.#client, this.#subscriber]) client.connect().catch(() => {})
    await Promise.race([isReady, isLate])
    clearTimeout(timer)
    const info = z.string().parse(await this.run((client) => client.info('server')))
    const version = /redis_version:(\d+)\.(\d+)/.exec(info)
    const [major = 0, minor = 0] = [Number(version?.[1]), Number(version?.[2])]
    const [majorMin = 0, minorMin = 0] = versionMin
    if (major < majorMin || (major === majorMin && minor < minorMin)) {
      throw new MoeshError('USAGE', `the store at ${this.#where} is Redis ${major}.${minor}`, 'use 6.2 or newer')
    }
  }

  /** One command or pipeline; whatever fails becomes STORE_UNREACHABLE. */
  async run<T>(work: (client: Redis | Cluster) => Promise<T>): Promise<T> {
    const startMs = performance.now()
    try {
      const result = await work(this.#client)
      this.#isReachable = true
      this.#roundTripMs = performance.now() - startMs
      return result
    } catch (cause) {
      this.#isReachable = false
      const message = cause instanceof Error ? cause.message : String(cause)
      const why = message.includes('writeable') && this.#lastError !== '' ? this.#lastError : message
      throw new MoeshError('STORE_UNREACHABLE', `the store at ${this.#where} does not answer: ${why}`, '', { cause })
    }
  }

  async script(script: Script, keys: readonly string[], args: readonly (string | number)[]): Promise<unknown> {
    return this.run(async (client) => {
      try {
        return await client.evalsha(script.sha1, keys.length, ...keys, ...args)
      } catch (thrown) {
        // A server that restarted has no scripts.
        if (!(thrown instanceof Error && thrown.message.startsWith('NOSCRIPT'))) throw thrown
        return await client.eval(script.text, keys.length, ...keys, ...args)
      }
    })
  }

  subscribe(channel: string, listener: () => void): void {
    this.#subscriber.on('message', listener)
    // With each new connection again, also where the first try failed; hints may be missed anyway.
    const subscribe = () => {
      this.#subscriber.subscribe(channel).catch(() => {})
    }
    if (this.#subscriber.status === 'ready') subscribe()
    this.#subscriber.on('ready', subscribe)
  }

  /** With each new connection. */
  onReady(listener: () => void): void {
    this.#client.on('ready', listener)
  }

  health(): { reachable: boolean; roundTripMs: number } {
    return { reachable: this.#isReachable, roundTripMs: this.#roundTripMs }
  }

  close(): void {
    this.#client.disconnect()
    this.#subscriber.disconnect()
  }
}

export type Script = { text: string; sha1: string }

/** `services/cluster/lua/NAME.lua` behind the prelude. */
export function loadScript(name: string): Script {
  const read = (file: string) => readFileSync(new URL(`./lua/${file}.lua`, import.meta.url), 'utf8')
  const text = `${read('prelude')}\n${read(name)}`
  return { text, sha1: createHash('sha1').update(text).digest('hex') }
}

function connect(url: Exclude<StoreUrl, { kind: 'memory' }>, tls: StoreTls, isSubscriber: boolean): Redis | Cluster {
  const retryStrategy = (attempt: number) =>
    Math.min(reconnectMsMax, 50 * 2 ** Math.min(attempt, 10)) * (0.75 + Math.random() / 2)
  const queueing = { enableOfflineQueue: isSubscriber, retryStrategy }
  const options = {
    connectTimeout: connectTimeoutMs,
    commandTimeout: commandTimeoutMs,
    maxRetriesPerRequest: 1,
    // After a fail-over the old master is a replica: go and find the new one.
    reconnectOnError: (error: Error) => (error.message.startsWith('READONLY') ? (2 as const) : (false as const)),
    lazyConnect: true,
    ...(url.username === '' ? {} : { username: url.username }),
    ...(url.password === '' ? {} : { password: url.password }),
    ...(url.isTls ? { tls } : {}),
  }
  switch (url.kind) {
    case 'single':
      return new Redis({ ...options, ...queueing, host: url.host, port: url.port, db: url.database })
    case 'sentinel':
      return new Redis({
        ...options,
        ...queueing,
        sentinels: url.sentinels,
        name: url.master,
        sentinelRetryStrategy: retryStrategy,
        ...(url.isTls ? { sentinelTLS: tls, enableTLSForSentinelMode: true } : {}),
      })
    case 'cluster':
      return new Cluster(url.nodes, {
        redisOptions: options,
        enableOfflineQueue: isSubscriber,
        clusterRetryStrategy: retryStrategy,
        lazyConnect: true,
      })
  }
}
