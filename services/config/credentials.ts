import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import { MoeshError } from './errors.ts'

/** What a process may be to another one, bound to its certificate by the name that stands among its alternative names. */
export type Role = 'coordinator' | 'expert' | 'client'

/** The names are reserved (RFC 6762, `.internal`), so that no public authority ever signs one. */
export const roleNames: Readonly<Record<Role, string>> = {
  coordinator: 'coordinator.moesh.internal',
  expert: 'expert.moesh.internal',
  client: 'client.moesh.internal',
}

/** PEM files: own certificate (its intermediates behind it), its key, and the authorities that peers' are checked by. */
export type TlsFiles = { certFile: string; keyFile: string; caFile: string }

export type TlsMaterial = {
  readonly cert: Buffer
  readonly key: Buffer
  readonly ca: Buffer
  /** Of the own certificate; it may carry several. */
  readonly roles: ReadonlySet<Role>
  readonly notAfterMs: number
}

/** A chain has a handful of certificates of 2 KiB; anything near this is not a PEM file of ours. */
const pemBytesMax = 1024 * 1024

/**
 * Reads the three files and refuses what could not work, so that the reason stands in the log of the process that has
 * the wrong file, and not as a failed handshake in its peers'. Errors: TLS_INVALID.
 */
export async function readTlsMaterial(files: TlsFiles, nowMs: number): Promise<TlsMaterial> {
  const [cert, key, ca] = await Promise.all([readPem(files.certFile), readPem(files.keyFile), readPem(files.caFile)])
  const chain = certificates(cert, files.certFile)
  const authorities = certificates(ca, files.caFile)
  const [own] = chain
  const last = chain.at(-1)
  if (own === undefined || last === undefined) throw invalid(files.certFile, 'holds no certificate')

  const notAfterMs = own.validToDate.getTime()
  if (nowMs >= notAfterMs) throw invalid(files.certFile, `expired on ${own.validToDate.toISOString()}`)
  // A clock that is some seconds behind its issuer's is common right after an issue; TLS itself has no such grace, but
  // the first handshakes come later than this check.
  if (nowMs + 60_000 < own.validFromDate.getTime()) {
    throw invalid(files.certFile, `is not valid before ${own.validFromDate.toISOString()}`, 'check the clock')
  }
  if (!own.checkPrivateKey(privateKey(key, files.keyFile))) {
    throw invalid(files.keyFile, `is not the key of the certificate in ${files.certFile}`)
  }
  if (
    !authorities.some((authority) => last.fingerprint256 === authority.fingerprint256 || last.checkIssued(authority))
  ) {
    throw invalid(files.certFile, `was not issued by an authority of ${files.caFile}`)
  }
  return { cert, key, ca, roles: rolesOf(own), notAfterMs }
}

/** By exact name only: a wildcard certificate has no role. */
export function rolesOf(certificate: X509Certificate): ReadonlySet<Role> {
  const roles = new Set<Role>()
  for (const role of ['coordinator', 'expert', 'client'] as const) {
    if (certificate.checkHost(roleNames[role], { subject: 'never', wildcards: false }) !== undefined) roles.add(role)
  }
  return roles
}

async function readPem(file: string): Promise<Buffer> {
  try {
    const { size } = await stat(file)
    if (size > pemBytesMax) throw invalid(file, `is ${size} bytes long, a PEM file has at most ${pemBytesMax}`)
    return await readFile(file)
  } catch (cause) {
    if (cause instanceof MoeshError) throw cause
    throw invalid(file, 'cannot be read', 'check the path and who may read it', cause)
  }
}

function certificates(pem: Buffer, file: string): X509Certificate[] {
  const blocks = pem.toString('latin1').match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  if (blocks.length === 0) throw invalid(file, 'holds no certificate', 'it must be in PEM form')
  return blocks.map((block) => {
    try {
      return new X509Certificate(block)
    } catch (cause) {
      throw invalid(file, 'holds a certificate that cannot be parsed', '', cause)
    }
  })
}

function privateKey(pem: Buffer, file: string) {
  try {
    return createPrivateKey(pem)
  } catch (cause) {
    throw invalid(file, 'holds no usable private key', 'it must be in PEM form and not encrypted', cause)
  }
}

function invalid(file: string, what: string, hint = '', cause?: unknown): MoeshError {
  return new MoeshError('TLS_INVALID', `${file} ${what}`, hint, cause === undefined ? {} : { cause })
}
