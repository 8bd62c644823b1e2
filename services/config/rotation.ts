import { setTimeout as sleep } from 'node:timers/promises'
import type { experimental } from '@grpc/grpc-js'
import { readTlsMaterial, type TlsFiles, type TlsMaterial } from './credentials.ts'

type CertificateProvider = Parameters<typeof experimental.createCertificateProviderServerCredentials>[0]
type CaListener = Parameters<CertificateProvider['addCaCertificateListener']>[0]
type IdentityListener = Parameters<CertificateProvider['addIdentityCertificateListener']>[0]

/**
 * Certificates are short-lived and change while the process runs: Kubernetes swaps a mounted secret's directory, other
 * tools replace file by file. So the files are read again every few seconds (three small reads; file events miss the
 * swap of a symbolic link), and a new set is taken only if it is complete and fits together. A half-written set or a
 * vanished file changes nothing: connections go on with the last good one, and the problem is reported once. The
 * provider that comes with grpc-js instead drops every new connection until the files are right again.
 */
export class RotatingMaterial implements CertificateProvider {
  #current: TlsMaterial
  readonly #files: TlsFiles
  readonly #report: (error: Error) => void
  readonly #caListeners = new Set<CaListener>()
  readonly #identityListeners = new Set<IdentityListener>()
  readonly #stop = new AbortController()
  #reported = ''

  private constructor(files: TlsFiles, current: TlsMaterial, report: (error: Error) => void) {
    this.#files = files
    this.#current = current
    this.#report = report
  }

  /** Errors: TLS_INVALID. `report` hears of later problems, once each. */
  static async open(
    files: TlsFiles,
    report: (error: Error) => void,
    timing: { now: () => number; everyMs: number },
  ): Promise<RotatingMaterial> {
    const material = new RotatingMaterial(files, await readTlsMaterial(files, timing.now()), report)
    void material.#watch(timing.now, timing.everyMs)
    return material
  }

  get current(): TlsMaterial {
    return this.#current
  }

  /** Listeners hear of the present material too, but only after the caller has finished: grpc-js registers its own
   * watcher after asking for ours, and would miss a call made at once. */
  addCaCertificateListener(listener: CaListener): void {
    this.#caListeners.add(listener)
    process.nextTick(() => this.#caListeners.has(listener) && listener({ caCertificate: this.#current.ca }))
  }

  removeCaCertificateListener(listener: CaListener): void {
    this.#caListeners.delete(listener)
  }

  addIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.add(listener)
    process.nextTick(() => this.#identityListeners.has(listener) && listener(this.#identity()))
  }

  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.#identityListeners.delete(listener)
  }

  close(): void {
    this.#stop.abort()
    this.#caListeners.clear()
    this.#identityListeners.clear()
  }

  /** Reads the files now. */
  async refresh(nowMs: number): Promise<void> {
    try {
      const next = await readTlsMaterial(this.#files, nowMs)
      this.#reported = ''
      if (isSame(next, this.#current) || this.#stop.signal.aborted) return
      this.#current = next
      for (const listener of this.#caListeners) listener({ caCertificate: next.ca })
      for (const listener of this.#identityListeners) listener(this.#identity())
    } catch (thrown) {
      const error = thrown instanceof Error ? thrown : new Error(String(thrown))
      if (error.message !== this.#reported) this.#report(error)
      this.#reported = error.message
    }
  }

  async #watch(now: () => number, everyMs: number): Promise<void> {
    while (!this.#stop.signal.aborted) {
      await sleep(everyMs, undefined, { ref: false, signal: this.#stop.signal }).catch(() => {}) // aborted: the loop ends
      if (!this.#stop.signal.aborted) await this.refresh(now())
    }
  }

  #identity() {
    return { certificate: this.#current.cert, privateKey: this.#current.key }
  }
}

function isSame(a: TlsMaterial, b: TlsMaterial): boolean {
  return a.cert.equals(b.cert) && a.key.equals(b.key) && a.ca.equals(b.ca)
}
