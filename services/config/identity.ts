import { randomBytes } from 'node:crypto'
import { hostname, networkInterfaces } from 'node:os'
import type { Role } from './credentials.ts'
import { openSecurity, type Security } from './tls.ts'

/** What every process of a cluster begins with. */

/** A node id where none is given: tells people the machine, and is free. */
export function randomId(): string {
  return `${hostname().replace(/[^A-Za-z0-9._-]/g, '-')}-${randomBytes(3).toString('hex')}`
}

export type SecuritySettings = {
  grpc: string
  tlsCert: string | undefined
  tlsKey: string | undefined
  tlsCa: string | undefined
  insecure: boolean
}

/** Errors: USAGE, TLS_INVALID. */
export function openProcessSecurity(
  settings: SecuritySettings,
  role: Role,
  report: (error: Error) => void,
): Promise<Security> {
  const { grpc, tlsCert, tlsKey, tlsCa, insecure } = settings
  return openSecurity({ role, tlsCert, tlsKey, tlsCa, insecure, listen: [grpc], report })
}

/** What peers dial: as given, else where it listens; a wildcard is replaced by the machine's first address. */
export function advertisedAddress(advertise: string | undefined, listening: string): string {
  if (advertise !== undefined) return advertise
  const colon = listening.lastIndexOf(':')
  const host = listening.slice(0, colon)
  if (host !== '0.0.0.0' && host !== '[::]' && host !== '::') return listening
  const outer = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find(({ internal, family }) => !internal && (host === '0.0.0.0' ? family === 'IPv4' : true))
  if (outer === undefined) return listening
  return `${outer.family === 'IPv6' ? `[${outer.address}]` : outer.address}${listening.slice(colon)}`
}
