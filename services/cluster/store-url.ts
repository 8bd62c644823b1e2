import { MoeshError } from '../config/errors.ts'

/**
 * Where the store is. Besides one server, a Sentinel group and a Cluster are understood:
 *
 *   memory:
 *   redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]           rediss:// with TLS
 *   redis-sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/MASTER     rediss-sentinel://
 *   redis-cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]             rediss-cluster://
 */
export type StoreUrl =
  | { kind: 'memory' }
  | ({ kind: 'single'; host: string; port: number; database: number } & Access)
  | ({ kind: 'sentinel'; sentinels: Address[]; master: string } & Access)
  | ({ kind: 'cluster'; nodes: Address[] } & Access)

type Address = { host: string; port: number }
type Access = { isTls: boolean; username: string; password: string }

/** Errors: USAGE. A password is never repeated in them. */
export function parseStoreUrl(text: string): StoreUrl {
  if (text === 'memory:') return { kind: 'memory' }
  const match = /^(rediss?)(-sentinel|-cluster)?:\/\/(?:([^@/]*)@)?([^/@]+)(?:\/(.*))?$/.exec(text)
  if (!match) {
    throw wrong('the store is given as memory:, redis://HOST:PORT, redis-sentinel://… or redis-cluster://…')
  }
  const [, scheme, group = '', credentials = '', hosts = '', path = ''] = match
  const access = { isTls: scheme === 'rediss', ...parseCredentials(credentials) }
  if (group === '-sentinel') {
    if (path === '') throw wrong('redis-sentinel://HOST:PORT,…/MASTER needs the name of the master')
    return { kind: 'sentinel', sentinels: parseAddresses(hosts, 26379), master: path, ...access }
  }
  const addresses = parseAddresses(hosts, 6379)
  if (group === '-cluster') {
    if (path !== '' && path !== '0') throw wrong('a Redis Cluster has no numbered databases')
    return { kind: 'cluster', nodes: addresses, ...access }
  }
  const [address, ...more] = addresses
  if (!address || more.length > 0) throw wrong('several addresses need redis-sentinel:// or redis-cluster://')
  const database = path === '' ? 0 : Number(path)
  if (!Number.isInteger(database) || database < 0) throw wrong(`"${path}" is not the number of a database`)
  return { kind: 'single', ...address, database, ...access }
}

function parseCredentials(credentials: string): { username: string; password: string } {
  const colon = credentials.indexOf(':')
  const [username, password] =
    colon < 0 ? [credentials, ''] : [credentials.slice(0, colon), credentials.slice(colon + 1)]
  try {
    return { username: decodeURIComponent(username), password: decodeURIComponent(password) }
  } catch (cause) {
    throw new MoeshError('USAGE', 'user or password of the store URL', 'escape special characters as %XX', { cause })
  }
}

function parseAddresses(hosts: string, portDefault: number): Address[] {
  return hosts.split(',').map((text) => {
    const match = /^(\[[0-9a-fA-F:]+\]|[^:[\]]+)(?::(\d+))?$/.exec(text)
    const port = Number(match?.[2] ?? portDefault)
    if (!match?.[1] || port < 1 || port > 65535) throw wrong(`"${text}" is not HOST:PORT`)
    return { host: match[1].replace(/^\[|\]$/g, ''), port }
  })
}

function wrong(message: string): MoeshError {
  return new MoeshError('USAGE', `store URL: ${message}`)
}

/** For logs: without the password. */
export function describeStoreUrl(url: StoreUrl): string {
  switch (url.kind) {
    case 'memory':
      return 'memory:'
    case 'single':
      return `${url.host}:${url.port}`
    case 'sentinel':
      return `master ${url.master} of ${url.sentinels.map(({ host, port }) => `${host}:${port}`).join(', ')}`
    case 'cluster':
      return url.nodes.map(({ host, port }) => `${host}:${port}`).join(', ')
  }
}
