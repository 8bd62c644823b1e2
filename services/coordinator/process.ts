import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import type { Role } from '../config/credentials.ts'
import { openSecurity, type Security } from '../config/tls.ts'
import type { Logger } from '../telemetry/log.ts'

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
export function openProcessSecurity(settings: SecuritySettings, role: Role, log: Logger): Promise<Security> {
  const { grpc, tlsCert, tlsKey, tlsCa, insecure } = settings
  const report = (error: Error) => log.error({ error }, 'certificates')
  return openSecurity({ role, tlsCert, tlsKey, tlsCa, insecure, listen: [grpc], report })
}
