import { createHash } from 'node:crypto'
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { MoeshError } from '../config/errors.ts'
import { headerLength, parseHeader, type SafetensorsEntry } from './safetensors-header.ts'

/** One safetensors file, open for reading by range: memory is the header's, whatever the file's size. */
export class SafetensorsFile {
  readonly path: string
  readonly bytes: number
  /** Changes with the file: part of a checkpoint's fingerprint. */
  readonly modifiedMs: number
  readonly headerSha256: string
  readonly metadata: Readonly<Record<string, string>>
  readonly entries: ReadonlyMap<string, SafetensorsEntry>
  #fd: number | null

  /** Throws CHECKPOINT_INVALID where the file is missing or its header does not hold. */
  constructor(path: string) {
    this.path = path
    this.#fd = openFile(path)
    try {
      const stat = fstatSync(this.#fd)
      this.bytes = stat.size
      this.modifiedMs = stat.mtimeMs
      const first = Buffer.alloc(Math.min(8, stat.size))
      this.readAt(first, 0)
      const json = Buffer.allocUnsafeSlow(headerLength(first, stat.size, path))
      this.readAt(json, 8)
      this.headerSha256 = createHash('sha256').update(first).update(json).digest('hex')
      const header = parseHeader(json, stat.size, path)
      this.metadata = header.metadata
      this.entries = new Map(header.entries.map((entry) => [entry.name, entry]))
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Fills `into` from byte `offset` of the file on. */
  readAt(into: Uint8Array, offset: number): void {
    if (this.#fd === null) throw new MoeshError('INTERNAL', `${this.path} was read after it was closed`)
    let done = 0
    while (done < into.length) {
      const count = readSync(this.#fd, into, done, into.length - done, offset + done)
      if (count === 0) {
        throw new MoeshError(
          'CHECKPOINT_INVALID',
          `${this.path} ends at byte ${offset + done}: it changed while it was read`,
        )
      }
      done += count
    }
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd)
    this.#fd = null
  }
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (cause) {
    throw new MoeshError('CHECKPOINT_INVALID', `${path} cannot be opened`, 'download it, or check its permissions', {
      cause,
    })
  }
}
