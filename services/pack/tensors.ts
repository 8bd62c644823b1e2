import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { MoeshError } from '../config/errors.ts'
import type { TensorEntry } from './manifest.ts'

/** `readSync` takes less than 2 GiB at once. */
const readBytesMax = 1024 * 1024 * 1024

/**
 * Reads the coordinator's tensors from where a manifest says they lie; `openPack` is who checks that they do. Nothing is
 * held open.
 */
export class PackTensors {
  readonly dir: string
  readonly #tensors: ReadonlyMap<string, TensorEntry>

  constructor(dir: string, tensors: readonly TensorEntry[]) {
    this.dir = dir
    this.#tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  }

  /** Throws PACK_INVALID, naming it. */
  tensor(name: string): TensorEntry {
    const tensor = this.#tensors.get(name)
    if (tensor) return tensor
    throw new MoeshError('PACK_INVALID', `pack ${this.dir} has no tensor ${name}`, 'pack the checkpoint again')
  }

  locate(name: string): { path: string; offset: number } {
    const { file, offset } = this.tensor(name)
    return { path: this.path(file), offset }
  }

  /** The whole tensor, little-endian, at the start of memory of its own. */
  readTensor(name: string): Buffer<ArrayBuffer> {
    const { file, offset, bytes } = this.tensor(name)
    return this.read(file, offset, bytes)
  }

  /** A f32 tensor. */
  readVector(name: string): Float32Array<ArrayBuffer> {
    const { dtype } = this.tensor(name)
    if (dtype !== 'f32') throw new MoeshError('PACK_INVALID', `tensor ${name} of pack ${this.dir} is ${dtype}, not f32`)
    const bytes = this.readTensor(name)
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  }

  path(file: string): string {
    return join(this.dir, file)
  }

  protected read(file: string, offset: number, bytes: number): Buffer<ArrayBuffer> {
    const into = Buffer.allocUnsafeSlow(bytes)
    const fd = openSync(this.path(file), 'r')
    try {
      for (let done = 0; done < bytes; ) {
        const count = readSync(fd, into, done, Math.min(readBytesMax, bytes - done), offset + done)
        if (count === 0) {
          const what = `pack ${this.dir} ${file} ends at byte ${offset + done}: it changed since the pack was opened`
          throw new MoeshError('PACK_INVALID', what, 'pack the checkpoint again')
        }
        done += count
      }
    } finally {
      closeSync(fd)
    }
    return into
  }
}
