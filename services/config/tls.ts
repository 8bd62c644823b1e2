import { X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import tls from 'node:tls'
import {
  ChannelCredentials,
  type ChannelOptions,
  experimental,
  ServerCredentials,
  ServerInterceptingCall,
  type ServerInterceptor,
} from '@grpc/grpc-js'
import { type Role, roleNames, rolesOf, type TlsFiles } from './credentials.ts'
import { asMoeshError, MoeshError } from './errors.ts'
import { grpcStatus } from './grpc-status.ts'
import { RotatingMaterial } from './rotation.ts'

/** What a handler or an interceptor is given: any server call of grpc-js. */
export type AuthenticatedCall = {
  getAuthContext(): { transportSecurityType?: string; sslPeerCertificate?: { raw: Buffer } }
}

/**
 * How this process talks to others: in the clear (loopback, or the user said `--insecure`), or with both sides showing
 * a certificate of one authority. Peers are known by their role, not by their address: pods come and go, and an
 * expert's certificate must not pass for a coordinator's wherever it is presented from.
 */
export interface Security {
  readonly kind: 'insecure' | 'mutual'
  serverCredentials(): ServerCredentials
  /** To call a process of that role, at whatever address: spread `options` into the client's channel options. */
  dial(role: Role): { credentials: ChannelCredentials; options: ChannelOptions }
  /** Errors: UNAUTHENTICATED, ROLE_DENIED. In the clear, anybody is taken for what it says. */
  requireRole(call: AuthenticatedCall, ...roles: readonly Role[]): void
  /** `tls` of ioredis, for a `rediss:` store; every reconnect takes the certificates of that moment. */
  redisTls(): tls.ConnectionOptions
  close(): void
}

export type SecurityOptions = {
  /** What this process is; its certificate must say so. Left out by commands that only call others. */
  role?: Role | undefined
  /** All three or none. */
  tlsCert?: string | undefined
  tlsKey?: string | undefined
  tlsCa?: string | undefined
  insecure?: boolean | undefined
  /** HOST:PORT of every listener that this security is for. */
  listen: readonly string[]
  /** Hears once of each problem with files that changed while running. */
  report: (error: Error) => void
  now?: () => number
  /** How often the files are read again. Kubelets take about a minute to bring a new secret; ten seconds add little. */
  refreshEveryMs?: number
}

/** Errors: USAGE (flags that do not fit together, a listener open to others), TLS_INVALID (the files). */
export async function openSecurity(options: SecurityOptions): Promise<Security> {
  const files = tlsFiles(options)
  if (files === undefined) {
    for (const address of options.listen) requireLoopback(address, options.insecure ?? false)
    return insecure
  }
  if (options.insecure === true) {
    throw new MoeshError('USAGE', '--insecure and --tls-cert exclude each other', 'leave one of them out')
  }
  const material = await RotatingMaterial.open(files, options.report, {
    now: options.now ?? Date.now,
    everyMs: options.refreshEveryMs ?? 10_000,
  })
  if (options.role !== undefined && !material.current.roles.has(options.role)) {
    material.close()
    const has = [...material.current.roles].join(', ') || 'none'
    throw new MoeshError(
      'TLS_INVALID',
      `the certificate in ${files.certFile} is not for the role ${options.role} (its roles: ${has})`,
      `it needs the alternative name DNS:${roleNames[options.role]}`,
    )
  }
  return mutual(material)
}

/** Errors: USAGE. Without TLS, whoever reaches the port is in: that must be a decision, not a default. */
export function requireLoopback(address: string, isInsecureAllowed: boolean): void {
  if (isInsecureAllowed || isLoopback(address)) return
  throw new MoeshError(
    'USAGE',
    `${address} can be reached from other machines, and without TLS everybody there could use this cluster`,
    'give --tls-cert, --tls-key and --tls-ca, or listen on 127.0.0.1, or say --insecure',
  )
}

export function isLoopback(address: string): boolean {
  if (address.startsWith('unix:')) return true
  const host = address.slice(0, address.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1')
  if (isIP(host) === 4) return host.startsWith('127.')
  return host === '::1' || host === 'localhost'
}

/** Which roles may call the services of a server; a service that is not listed may be called by nobody. */
export type ServiceRoles = Readonly<Record<string, readonly Role[]>>

/**
 * Refuses calls by role before any handler runs, so that a new method of a service is closed unless somebody opens it.
 * The key of `serviceRoles` is the full name, e.g. `moesh.v1.Inference`.
 */
export function roleInterceptor(security: Security, serviceRoles: ServiceRoles): ServerInterceptor {
  return (method, call) => {
    const service = method.path.split('/')[1] ?? ''
    return new ServerInterceptingCall(call, {
      start: (next) => {
        try {
          const roles = serviceRoles[service] ?? []
          if (security.kind === 'mutual') security.requireRole(call, ...roles)
          next()
        } catch (thrown) {
          const denied = asMoeshError(thrown)
          const code = grpcStatus(denied.code)
          next({ onReceiveMetadata: () => call.sendStatus({ code, details: denied.message }) })
        }
      },
    })
  }
}

const insecure: Security = {
  kind: 'insecure',
  serverCredentials: () => ServerCredentials.createInsecure(),
  dial: () => ({ credentials: ChannelCredentials.createInsecure(), options: {} }),
  requireRole: () => {},
  redisTls: () => ({}),
  close: () => {},
}

function mutual(material: RotatingMaterial): Security {
  return {
    kind: 'mutual',
    serverCredentials: () => experimental.createCertificateProviderServerCredentials(material, material, true),
    dial: (role) => ({
      credentials: experimental.createCertificateProviderChannelCredentials(material, material),
      // The name that is looked for in the peer's certificate; the address that is dialled plays no part.
      options: { 'grpc.ssl_target_name_override': roleNames[role] },
    }),
    requireRole: (call, ...roles) => {
      const peer = call.getAuthContext().sslPeerCertificate
      if (peer === undefined) {
        throw new MoeshError('UNAUTHENTICATED', 'this call needs a client certificate of the cluster')
      }
      const actual = rolesOf(new X509Certificate(peer.raw))
      if (roles.some((role) => actual.has(role))) return
      const has = [...actual].join(', ') || 'no role'
      throw new MoeshError(
        'ROLE_DENIED',
        `a certificate for ${has} may not do this; it takes ${roles.join(' or ') || 'another'}`,
      )
    },
    redisTls: () => redisTls(material),
    close: () => material.close(),
  }
}

/**
 * The store is checked by its host name, as for any other Redis. A managed one has a certificate of a public authority,
 * so those count beside ours. ioredis copies the object at each connect, which is when the getters are asked.
 */
function redisTls(material: RotatingMaterial): tls.ConnectionOptions {
  const known = tls.getCACertificates('default')
  return {
    get ca() {
      return [...known, material.current.ca.toString('latin1')]
    },
    get cert() {
      return material.current.cert
    },
    get key() {
      return material.current.key
    },
  }
}

function tlsFiles(options: SecurityOptions): TlsFiles | undefined {
  const { tlsCert, tlsKey, tlsCa } = options
  if (tlsCert !== undefined && tlsKey !== undefined && tlsCa !== undefined) {
    return { certFile: tlsCert, keyFile: tlsKey, caFile: tlsCa }
  }
  const given = { '--tls-cert': tlsCert, '--tls-key': tlsKey, '--tls-ca': tlsCa }
  const missing = Object.entries(given).filter(([, value]) => value === undefined)
  if (missing.length === 3) return undefined
  const names = missing.map(([flag]) => flag).join(' and ')
  throw new MoeshError(
    'USAGE',
    `${names} ${missing.length > 1 ? 'are' : 'is'} missing`,
    'the three TLS files come together',
  )
}
