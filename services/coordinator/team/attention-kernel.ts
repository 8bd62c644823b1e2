import { readFileSync } from 'node:fs'
import { MoeshError } from '../../config/errors.ts'
import {
  createWasmMemory,
  instantiateKernel,
  type WasmMemory,
  wasmPageBytes,
  wasmPagesMax,
} from '../../runtime/wasm.ts'
import { kvBlockTokens } from './kv-cache.ts'

/** See `kernel/attention.ts`. */
type KernelExports = {
  readonly blockTokens: { readonly value: number }
  attend(
    q: number,
    out: number,
    rows: number,
    group: number,
    firsts: number,
    ends: number,
    blocks: number,
    heads: number,
    headDim: number,
    scale: number,
    scratch: number,
  ): void
  sumSquares(at: number, count: number): number
  turn(
    from: number,
    to: number,
    stride: number,
    heads: number,
    headDim: number,
    weights: number,
    weightStride: number,
    inverse: number,
    eps: number,
    limit: number,
    cos: number,
    sin: number,
  ): void
  place(from: number, to: number, stride: number, heads: number, headDim: number, limit: number): void
}

/** `kernel/attention.ts`, compiled. Its bytes are part of what a coordinator's bits depend on. */
export const kernelBytes = readFileSync(new URL('./kernel/attention.wasm', import.meta.url))

const alignment = 64
/** Grown by so many at once: growing makes new views of all of it. */
const growPages = 256

/** What one thread's keys, values and scratch can take at most: pointers have 32 bits. */
export const kernelBytesMax = wasmPagesMax * wasmPageBytes

/** A span of the memory that holds at least what was asked for last; what it held before is lost when it grows. */
export type Span = { at: number; bytes: number }

/** The attention kernel and the memory of one thread that it works in. Addresses are in bytes. */
export class AttentionKernel {
  readonly #pages: WasmMemory
  readonly code: KernelExports
  #floats: Float32Array<ArrayBuffer>
  #ints: Int32Array<ArrayBuffer>
  /** Address 0 is left free, and the last four lines: the kernel reads so many at once. */
  #used = alignment

  constructor() {
    this.#pages = createWasmMemory(1)
    this.code = instantiateKernel<KernelExports>(kernelBytes, this.#pages)
    this.#floats = new Float32Array(this.#pages.buffer)
    this.#ints = new Int32Array(this.#pages.buffer)
    if (this.code.blockTokens.value !== kvBlockTokens) {
      throw new MoeshError('INTERNAL', 'the attention kernel was compiled for blocks of another size')
    }
  }

  /** The whole memory; another array after `allocate`. */
  get floats(): Float32Array<ArrayBuffer> {
    return this.#floats
  }

  get ints(): Int32Array<ArrayBuffer> {
    return this.#ints
  }

  allocate(bytes: number): number {
    const at = this.#used
    const end = at + Math.ceil(bytes / alignment) * alignment
    const missing = Math.ceil((end + 4 * alignment - this.#pages.buffer.byteLength) / wasmPageBytes)
    if (missing > 0) this.#grow(missing)
    this.#used = end
    return at
  }

  reserve(span: Span, bytes: number): number {
    if (bytes > span.bytes) {
      const wanted = Math.max(bytes, 2 * span.bytes)
      // In this order: a failed growth leaves the span as it was.
      span.at = this.allocate(wanted)
      span.bytes = wanted
    }
    return span.at
  }

  #grow(missing: number): void {
    const room = wasmPagesMax - this.#pages.buffer.byteLength / wasmPageBytes
    try {
      this.#pages.grow(Math.max(missing, Math.min(growPages, room)))
    } catch (cause) {
      throw new MoeshError(
        'INTERNAL',
        `there is no memory for ${missing * wasmPageBytes} more bytes of keys and values`,
        'give the KV cache less with --kv-memory',
        { cause },
      )
    }
    this.#floats = new Float32Array(this.#pages.buffer)
    this.#ints = new Int32Array(this.#pages.buffer)
  }
}
