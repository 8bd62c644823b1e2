import { closeSync, openSync, readSync } from 'node:fs'
import { MoeshError } from '../../config/errors.ts'
import { type Dtype, dtypeBytes } from '../../model/format.ts'

/** Where the embedding matrix [vocabulary, hidden] lies. */
export type EmbeddingSource = { path: string; offset: number; dtype: Dtype }

const warmChunkBytes = 256 << 10

/** Rows of the embedding, read from the pack's file when they are needed: a large vocabulary takes no memory of ours. */
export class Embedding {
  readonly #fd: number
  readonly #source: EmbeddingSource
  readonly #hidden: number
  readonly #bytes: Uint8Array
  readonly #words: Uint16Array
  readonly #bits: Uint32Array
  readonly #floats: Float32Array

  constructor(source: EmbeddingSource, hidden: number) {
    this.#fd = openSync(source.path, 'r')
    this.#source = source
    this.#hidden = hidden
    this.#bytes = new Uint8Array(hidden * 4)
    this.#words = new Uint16Array(this.#bytes.buffer)
    this.#floats = new Float32Array(hidden)
    this.#bits = new Uint32Array(this.#floats.buffer)
  }

  /** Reads all of it once, into the page cache: a row that comes from the disk makes a whole step wait for 0.3 ms. */
  warm(vocabulary: number): void {
    const { dtype, offset } = this.#source
    const end = offset + vocabulary * this.#hidden * dtypeBytes[dtype]
    const chunk = new Uint8Array(warmChunkBytes)
    for (let at = offset; at < end; ) {
      const count = readSync(this.#fd, chunk, 0, Math.min(chunk.byteLength, end - at), at)
      // A file that ends early is reported with the row that is missing.
      if (count === 0) return
      at += count
    }
  }

  /** Writes the row of `token` as f32 to out[at …]. */
  read(token: number, out: Float32Array, at: number): void {
    const { dtype, offset, path } = this.#source
    const rowBytes = this.#hidden * dtypeBytes[dtype]
    const count = readSync(this.#fd, this.#bytes, 0, rowBytes, offset + token * rowBytes)
    if (count !== rowBytes) throw new MoeshError('PACK_INVALID', `${path} ends within embedding row ${token}`)
    switch (dtype) {
      case 'f32':
        out.set(new Float32Array(this.#bytes.buffer, 0, this.#hidden), at)
        return
      case 'bf16':
        for (let i = 0; i < this.#hidden; i++) this.#bits[i] = (this.#words[i] ?? 0) << 16
        out.set(this.#floats, at)
        return
      case 'f16':
        for (let i = 0; i < this.#hidden; i++) out[at + i] = halfToFloat(this.#words[i] ?? 0)
        return
      default:
        throw new MoeshError('PACK_INVALID', `embeddings of type ${dtype} are not supported`)
    }
  }

  close(): void {
    closeSync(this.#fd)
  }
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 0x1f
  const fraction = bits & 0x3ff
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}
