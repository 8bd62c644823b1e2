import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { TlsFiles } from '../../services/config/credentials.ts'

export function hasOpenssl(): boolean {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** A certificate authority made for one test, in a folder of its own. */
export class Authority {
  readonly dir: string
  readonly certFile: string
  readonly #keyFile: string
  #serial = 0

  constructor(dir: string) {
    mkdirSync(dir, { recursive: true })
    this.dir = dir
    this.certFile = join(dir, 'ca.crt')
    this.#keyFile = join(dir, 'ca.key')
    openssl(['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'], {
      '-subj': '/CN=moesh test authority',
      '-keyout': this.#keyFile,
      '-out': this.certFile,
      '-addext': 'keyUsage=critical,keyCertSign,cRLSign',
    })
  }

  /** Files `NAME.crt` and `NAME.key` with these alternative names, e.g. `DNS:expert.moesh.internal`. */
  issue(name: string, alternativeNames: readonly string[], days = 1): TlsFiles {
    const certFile = join(this.dir, `${name}.crt`)
    const keyFile = join(this.dir, `${name}.key`)
    const requestFile = join(this.dir, `${name}.csr`)
    const extensionsFile = join(this.dir, `${name}.ext`)
    const names = alternativeNames.length === 0 ? '' : `subjectAltName=${alternativeNames.join(',')}\n`
    writeFileSync(extensionsFile, `basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n${names}`)
    openssl(['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'], {
      '-subj': `/CN=${name}`,
      '-keyout': keyFile,
      '-out': requestFile,
    })
    this.#serial += 1
    openssl(['x509', '-req'], {
      '-in': requestFile,
      '-CA': this.certFile,
      '-CAkey': this.#keyFile,
      '-set_serial': String(this.#serial),
      '-days': String(days),
      '-extfile': extensionsFile,
      '-out': certFile,
    })
    return { certFile, keyFile, caFile: this.certFile }
  }
}

function openssl(command: readonly string[], options: Readonly<Record<string, string>>): void {
  execFileSync('openssl', [...command, ...Object.entries(options).flat()], { stdio: 'pipe' })
}
