import { createHash } from 'node:crypto'
import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import type { PlannedUnit } from './plan.ts'

const zeros = new Uint8Array(64 * 1024)
/** "a+" would append wherever it is told to write, "w+" would empty the file. */
const readWriteCreate = constants.O_RDWR | constants.O_CREAT
/** Bytes read back at once when a file is resumed. */
const readBackBytes = 4 * 1024 * 1024

/** One file of a pack while it is written, from front to back; digests are taken on the way. */
export class OutputFile {
  readonly path: string
  #fd: number
  #position = 0
  #file = createHash('sha256')
  #unit = createHash('sha256')

  /** Opens or creates the file; what it holds already stays until `keep` has been asked. */
  constructor(path: string) {
    this.path = path
    this.#fd = openSync(path, readWriteCreate)
  }

  get position(): number {
    return this.#position
  }

  /**
   * Goes behind the unit, if the file holds it as its digest says; else returns false and stays. Only in order, from
   * the first unit on.
   */
  keep(unit: PlannedUnit, sha256: string): boolean {
    if (fstatSync(this.#fd).size < unit.offset + unit.bytes) return false
    const file = this.#file.copy()
    const digest = createHash('sha256')
    const chunk = Buffer.allocUnsafe(Math.min(readBackBytes, unit.offset + unit.bytes - this.#position))
    for (let at = this.#position; at < unit.offset + unit.bytes; ) {
      // The gap in front of the unit belongs to the file's digest alone.
      const end = at < unit.offset ? unit.offset : unit.offset + unit.bytes
      const part = chunk.subarray(0, Math.min(chunk.length, end - at))
      if (readSync(this.#fd, part, 0, part.length, at) !== part.length) return false
      file.update(part)
      if (at >= unit.offset) digest.update(part)
      at += part.length
    }
    if (digest.digest('hex') !== sha256) return false
    this.#file = file
    this.#position = unit.offset + unit.bytes
    return true
  }

  /** Before the first write: what lies behind the units that were kept goes. */
  truncate(): void {
    ftruncateSync(this.#fd, this.#position)
  }

  beginUnit(unit: PlannedUnit): void {
    this.padTo(unit.offset)
    this.#unit = createHash('sha256')
  }

  /** Zeros up to `offset`. */
  padTo(offset: number): void {
    while (this.#position < offset) this.write(zeros.subarray(0, Math.min(zeros.length, offset - this.#position)))
  }

  write(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      done += writeSync(this.#fd, bytes, done, bytes.length - done, this.#position + done)
    }
    this.#file.update(bytes)
    this.#unit.update(bytes)
    this.#position += bytes.length
  }

  /** The unit's digest. */
  endUnit(): string {
    const digest = this.#unit.digest('hex')
    this.#unit = createHash('sha256')
    return digest
  }

  /** All of it on the disk; returns the file's size and digest. Nothing may be written afterwards. */
  finish(): { bytes: number; sha256: string } {
    fsyncSync(this.#fd)
    return { bytes: this.#position, sha256: this.#file.digest('hex') }
  }

  close(): void {
    closeSync(this.#fd)
  }
}
