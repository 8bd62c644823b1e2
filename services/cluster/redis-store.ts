import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { nodeGaugesSchema, nodeRecordSchema, nodeStatusSchema } from './node.ts'
import { placementSchema } from './placement.ts'
import { loadScript, RedisClient, type StoreTls } from './redis-client.ts'
import { type BeatReply, clusterEventSchema, type Leader, publishedLoadSchema, type Store } from './store.ts'
import { eventsMax, flagsMax, kvBlocksMax } from './store-limits.ts'
import { parseStoreUrl } from './store-url.ts'

export type RedisStoreOptions = {
  /** See `store-url.ts`. */
  url: string
  /** Several clusters may share one server. */
  cluster: string
  tls?: StoreTls
  /** How long the first connection may take; default 5 s. */
  connectMs?: number
}

/**
 * Errors: USAGE (URL, cluster name, server too old), STORE_UNREACHABLE where the first connection fails; later outages
 * are errors of single calls, and it reconnects by itself.
 */
export async function openRedisStore(options: RedisStoreOptions): Promise<Store> {
  const url = parseStoreUrl(options.url)
  if (url.kind === 'memory') throw new MoeshError('USAGE', 'memory: is not a store that processes can share')
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(options.cluster)) {
    throw new MoeshError('USAGE', `cluster name "${options.cluster}"`, 'letters, digits, ".", "_" and "-", at most 64')
  }
  const client = new RedisClient(url, options.tls)
  try {
    await client.open(options.connectMs ?? 5000)
  } catch (thrown) {
    client.close()
    throw thrown
  }
  return redisStore(client, options.cluster)
}

const scripts = {
  register: loadScript('register'),
  beat: loadScript('beat'),
  deregister: loadScript('deregister'),
  lead: loadScript('lead'),
  resign: loadScript('resign'),
  writeTarget: loadScript('write-target'),
  activate: loadScript('activate'),
  readPlacement: loadScript('read-placement'),
  setFlag: loadScript('set-flag'),
  publishLoad: loadScript('publish-load'),
  loads: loadScript('loads'),
  journalPut: loadScript('journal-put'),
  journalAppend: loadScript('journal-append'),
  journalResume: loadScript('journal-resume'),
  journalGet: loadScript('journal-get'),
  kvAnnounce: loadScript('kv-announce'),
  kvFind: loadScript('kv-find'),
}

function redisStore(client: RedisClient, cluster: string): Store {
  // One hash tag, so that scripts may touch several keys on a Redis Cluster too.
  const key = (name: string) => `moesh:{${cluster}}:${name}`
  const hints = key('changed')
  const membership = ['meta', 'nodes', 'statuses', 'incarnations', 'leases', 'changes', 'gone'].map(key)
  const [gauges, drained, suspended, lead, target, active] = [
    key('gauges'),
    key('drained'),
    key('suspended'),
    key('lead'),
    key('target'),
    key('active'),
  ]
  const journal = (id: string) => [key(`journal:${id}`), key(`journal:${id}:tokens`)]
  const kv = (coordinator: string) => key(`kv:${coordinator}`)
  const listeners = new Set<() => void>()
  let isSubscribed = false

  const store: Store = {
    kind: 'redis',

    async register(node, leaseMs) {
      const { id, incarnation } = node.record
      const args = [id, incarnation, leaseMs, JSON.stringify(node.record), JSON.stringify(node.status)]
      const isOwn = await client.script(scripts.register, [...membership, hints], args)
      if (isOwn !== 1) {
        throw new MoeshError('NODE_ID_TAKEN', `a node with the id "${id}" is alive`, 'give this one another --id')
      }
    },

    async beat({ id, incarnation, leaseMs, status, gauges: own, cursor }) {
      const reply = await client.script(
        scripts.beat,
        [...membership, gauges, drained, suspended, lead, target, active, hints],
        [
          id,
          incarnation,
          leaseMs,
          status === null ? '' : JSON.stringify(status),
          JSON.stringify(own),
          cursor?.generation ?? 0,
          cursor?.version ?? 0,
        ],
      )
      return parseBeat(reply)
    },

    async deregister(id, incarnation) {
      await client.script(scripts.deregister, [...membership, gauges, hints], [id, incarnation])
    },

    async gauges() {
      return parseMap(await client.run((redis) => redis.hgetall(gauges)), nodeGaugesSchema)
    },

    async lead(id, incarnation, leaseMs) {
      return leaderSchema.parse(await client.script(scripts.lead, [lead, hints], [id, incarnation, leaseMs]))
    },

    async resign(id, incarnation) {
      await client.script(scripts.resign, [lead, hints], [id, incarnation])
    },

    async writeTarget(placement) {
      const args = [placement.token, placement.epoch, JSON.stringify(placement)]
      if ((await client.script(scripts.writeTarget, [lead, target, hints], args)) !== 1) throw notLeader()
    },

    async activate(id, token) {
      const args = [token, id.epoch, id.token]
      const result = await client.script(scripts.activate, [lead, target, active, hints], args)
      if (result === 2) throw new MoeshError('NOT_LEADER', `placement ${id.epoch} is not the target any more`)
      if (result !== 1) throw notLeader()
    },

    async readPlacement(known) {
      const args = [known.target, known.active].flatMap((id) => [id?.epoch ?? 0, id?.token ?? 0])
      const reply = await client.script(scripts.readPlacement, [target, active], args)
      const [targetBody, activeBody] = z.tuple([z.string(), z.string()]).parse(reply)
      const parse = (body: string) => (body === '' ? null : placementSchema.parse(JSON.parse(body)))
      return { target: parse(targetBody), active: parse(activeBody) }
    },

    async setDrained(id, by) {
      await setFlag(drained, id, by, '')
    },

    async setSuspended(id, reason) {
      await setFlag(suspended, id, reason, 'suspensions')
    },

    async publishLoad(coordinator, load, keepMs) {
      const args = [coordinator, JSON.stringify(load), keepMs]
      await client.script(scripts.publishLoad, [key('load'), key('load-ends')], args)
    },

    async loads() {
      const reply = await client.script(scripts.loads, [key('load'), key('load-ends')], [])
      const flat = z.array(z.string()).parse(reply)
      return parseMap(Object.fromEntries(pairs(flat)), publishedLoadSchema)
    },

    async journalPut(id, owner, request, keepMs) {
      await client.script(scripts.journalPut, journal(id), [owner, request, keepMs])
    },

    async journalAppend(id, candidate, offset, tokens, keepMs) {
      const hex = tokens.map((token) => token.toString(16).padStart(8, '0')).join('')
      await client.script(scripts.journalAppend, journal(id), [candidate, offset, hex, keepMs])
    },

    async journalResume(id, owner, keepMs) {
      await client.script(scripts.journalResume, journal(id), [owner, keepMs])
    },

    async journalGet(id) {
      const reply = await client.script(scripts.journalGet, journal(id), [])
      if (z.tuple([]).safeParse(reply).success) return null
      const [request, owner, resumed, flat] = journalSchema.parse(reply)
      const tokens: number[][] = []
      for (const [candidate, hex] of pairs(flat)) tokens[Number(candidate)] = parseTokens(hex)
      return { request, owner, resumed, tokens: Array.from(tokens, (one) => one ?? []) }
    },

    async kvAnnounce(coordinator, blocks, keepMs) {
      if (blocks.length === 0) return
      await client.script(scripts.kvAnnounce, [kv(coordinator)], [keepMs, kvBlocksMax, ...blocks.slice(-kvBlocksMax)])
    },

    async kvForget(coordinator, blocks) {
      if (blocks.length === 0) return
      await client.run((redis) => redis.zrem(kv(coordinator), ...blocks))
    },

    async kvFind(coordinators, blocks) {
      if (coordinators.length === 0 || blocks.length === 0) return new Map(coordinators.map((id) => [id, 0]))
      const counts = z.array(z.number()).parse(await client.script(scripts.kvFind, coordinators.map(kv), blocks))
      return new Map(coordinators.map((id, index) => [id, counts[index] ?? 0]))
    },

    async appendEvents(events) {
      if (events.length === 0) return
      await client.run(async (redis) => {
        const pipeline = redis.pipeline()
        for (const event of events) {
          pipeline.xadd(key('events'), 'MAXLEN', '~', eventsMax, '*', 'event', JSON.stringify(event))
        }
        const results = await pipeline.exec()
        const failed = results?.find(([error]) => error !== null)
        if (failed?.[0]) throw failed[0]
        await redis.publish(hints, '')
      })
    },

    async readEvents(cursor, max) {
      if (max === 0 && cursor !== null) return { events: [], cursor }
      const entries = await client.run(async (redis) =>
        cursor === null
          ? (await redis.xrevrange(key('events'), '+', '-', 'COUNT', Math.max(1, max))).reverse()
          : redis.xrange(key('events'), `(${cursor}`, '+', 'COUNT', max),
      )
      const kept = max === 0 ? [] : entries
      // One that another version wrote must not hide those behind it.
      const events = kept.flatMap(([, [, body]]) => clusterEventSchema.safeParse(parseJson(body)).data ?? [])
      // Of an empty list too there is an after: its events will have greater ids than this.
      return { events, cursor: entries.at(-1)?.[0] ?? cursor ?? '0-0' }
    },

    onHint(listener) {
      listeners.add(listener)
      if (!isSubscribed) {
        isSubscribed = true
        const tell = () => {
          for (const each of listeners) each()
        }
        client.subscribe(hints, tell)
        // Hints were missed meanwhile, and the store may have come back empty.
        client.onReady(tell)
      }
      return () => {
        listeners.delete(listener)
      }
    },

    health: () => client.health(),

    async close() {
      listeners.clear()
      client.close()
    },
  }

  async function setFlag(flag: string, id: string, value: string | null, counter: string): Promise<void> {
    const args = [id, value === null ? 0 : 1, value ?? '', flagsMax, counter]
    if ((await client.script(scripts.setFlag, [flag, key('meta'), hints], args)) !== 1) {
      throw new MoeshError('INVALID_ARGUMENT', 'too many nodes are drained or suspended', 'undrain some')
    }
  }

  return store
}

const integer = z.coerce.number().int().nonnegative()
const leaderSchema = z
  .tuple([z.string(), z.string(), integer, integer])
  .transform(([id, incarnation, token, remainingMs]): Leader => ({ id, incarnation, token, remainingMs }))
const identitySchema = z.tuple([integer, integer]).transform(([epoch, token]) => ({ epoch, token }))
const none = z.tuple([]).transform(() => null)
const journalSchema = z.tuple([z.string(), z.string(), integer, z.array(z.string())])
const beatSchema = z.tuple([
  integer,
  integer,
  integer,
  integer,
  integer,
  z.array(z.string()),
  z.array(z.string()),
  z.array(z.string()),
  z.array(z.string()),
  z.union([leaderSchema, none]),
  z.union([identitySchema, none]),
  z.union([identitySchema, none]),
  integer,
])

function parseBeat(reply: unknown): BeatReply {
  const fields = beatSchema.parse(reply)
  const [known, full, generation, version, graceMs, nodes, left, drained, suspended, leader, target, active] = fields
  const entries: BeatReply['nodes'] = []
  for (let i = 0; i + 2 < nodes.length; i += 3) {
    const record = nodeRecordSchema.safeParse(parseJson(nodes[i + 1]))
    const status = nodeStatusSchema.safeParse(parseJson(nodes[i + 2]))
    // A node of a version that writes something else must not blind the rest of the cluster.
    if (record.success && status.success) entries.push({ record: record.data, status: status.data })
  }
  return {
    isKnown: known === 1,
    isFull: full === 1,
    cursor: { generation, version },
    nodes: entries,
    left: pairs(left).map(([id, expired]) => ({ id, expired: expired === '1' })),
    graceMs,
    drained: new Map(pairs(drained).map(([id, by]) => [id, by === 'scaling' ? 'scaling' : 'operator'])),
    suspended: new Map(pairs(suspended)),
    leader,
    target,
    active,
    suspensions: fields[12],
  }
}

function parseMap<T>(values: Record<string, string>, schema: z.ZodType<T>): Map<string, T> {
  const result = new Map<string, T>()
  for (const [id, text] of Object.entries(values)) {
    const parsed = schema.safeParse(parseJson(text))
    if (parsed.success) result.set(id, parsed.data)
  }
  return result
}

function parseJson(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? '')
  } catch {
    // The schema refuses it.
    return undefined
  }
}

function parseTokens(hex: string): number[] {
  return (hex.match(/.{8}/g) ?? []).map((digits) => Number.parseInt(digits, 16))
}

function pairs(flat: readonly string[]): [string, string][] {
  const result: [string, string][] = []
  for (let i = 0; i + 1 < flat.length; i += 2) result.push([flat[i] ?? '', flat[i + 1] ?? ''])
  return result
}

function notLeader(): MoeshError {
  return new MoeshError('NOT_LEADER', 'another coordinator leads by now')
}
