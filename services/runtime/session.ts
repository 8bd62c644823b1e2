import {
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MoeshError } from '../config/errors.ts'
import type { FilePiece, Graph, Weight } from '../graph/graph.ts'
import { encodeModel, type OnnxTensor } from '../graph/onnx.ts'
import { addKernelMs } from './inside.ts'

/**
 * ONNX Runtime sessions from graphs, through the synchronous binding of onnxruntime-node: its public `run` is the same
 * blocking call behind a promise, and we only call it on threads that have nothing else to do.
 *
 * Weights are read by ONNX Runtime from files beside the model file: the only way in which a session takes no more
 * memory than its weights. Files are staged in a directory of the session's own that is gone once it is loaded.
 */

export type Provider = 'cpu' | 'webgpu' | 'cuda'

/** A tensor as the binding takes it: a view of any buffer, shared memory too; nothing is copied on the way in. */
export type Feed = {
  dims: readonly number[]
  type: 'float32' | 'uint8' | 'int64'
  data: Float32Array | Uint8Array | BigInt64Array
  location: 'cpu'
}

export type Feeds = Readonly<Record<string, Feed>>

export type Output = Float32Array<ArrayBuffer> | Uint8Array<ArrayBuffer> | BigInt64Array<ArrayBuffer>

/** Outputs are fresh copies, each in a buffer of its own, which the caller gives back with `release` once it has read them. */
export type Fetched = Readonly<Record<string, { data: Output }>>

/**
 * Frees an output's memory at once, for the next run to take while it is still in the caches. Left to the collector,
 * outputs pile up to hundreds of MiB, and every run clears pages that were never touched.
 */
export function release({ buffer }: Output): void {
  buffer.transfer(0)
}

export interface Session {
  run(feeds: Feeds): Fetched
  dispose(): void
}

export type SessionOptions = {
  stageDir: string
  provider: Provider
  /** Use 8-bit kernels that do not saturate: needed on CPUs without VNNI, see `probe.ts`. */
  avoidSaturation: boolean
}

type BindingSession = {
  loadModel(path: string, options: object): void
  readonly outputMetadata: readonly { name: string }[]
  run(feeds: object, fetches: object, options: object): Fetched
  dispose(): void
}

type Binding = { initOrt(): void; binding: { InferenceSession: new () => BindingSession } }

const require = createRequire(import.meta.url)
let loaded: Binding | null = null

function runtimeBinding(): Binding {
  if (loaded === null) {
    // It would send usage data to its maker; for processes that were not started by our launcher.
    process.env.ORT_DISABLE_TELEMETRY = '1'
    // By default CUDA's f32 products round their inputs to 10 bits (TF32): errors of 6e-4 instead of 1e-6.
    process.env.NVIDIA_TF32_OVERRIDE = '0'
    loaded = require('onnxruntime-node/dist/binding.js') as Binding
    loaded.initOrt()
  }
  return loaded
}

/** The version of ONNX Runtime: part of the numerics class. */
export function runtimeVersion(): string {
  const { version } = require('onnxruntime-node/package.json') as { version: string }
  return version
}

/** Throws PROVIDER_UNAVAILABLE where the execution provider can't be had; it is never replaced by another. */
export function createSession(graph: Graph, options: SessionOptions): Session {
  try {
    return createStagedSession(graph, options)
  } catch (thrown) {
    if (!(thrown instanceof Error && 'code' in thrown && thrown.code === 'ENOSPC')) throw thrown
    // A cache that filled its disk must not keep a node from its weights; the system's own directory may be another.
    return createStagedSession(graph, { ...options, stageDir: tmpdir() })
  }
}

function createStagedSession(graph: Graph, options: SessionOptions): Session {
  const { binding } = runtimeBinding()
  mkdirSync(options.stageDir, { recursive: true })
  const dir = mkdtempSync(join(options.stageDir, 'session-'))
  try {
    const tensors = stageWeights(graph, dir)
    const path = join(dir, 'model.onnx')
    writeFileSync(path, encodeModel({ nodes: graph.nodes, inputs: graph.inputs, outputs: graph.outputs, tensors }))
    const session = new binding.InferenceSession()
    load(session, path, options)
    const fetches = Object.fromEntries(session.outputMetadata.map(({ name }) => [name, null]))
    return {
      run: (feeds) => {
        const startedMs = performance.now()
        const fetched = session.run(feeds, fetches, {})
        addKernelMs(performance.now() - startedMs)
        return fetched
      },
      dispose: () => session.dispose(),
    }
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

function load(session: BindingSession, path: string, options: SessionOptions): void {
  const { provider } = options
  try {
    session.loadModel(path, {
      executionProviders: [provider],
      intraOpNumThreads: 1,
      interOpNumThreads: 1,
      graphOptimizationLevel: 'all',
      enableCpuMemArena: false,
      logSeverityLevel: 3,
      extra: {
        session: {
          intra_op: { allow_spinning: '0' },
          ...(options.avoidSaturation ? { x64quantprecision: '1' } : {}),
          ...(provider === 'cpu' ? {} : { disable_cpu_ep_fallback: '1' }),
        },
      },
    })
  } catch (cause) {
    if (provider === 'cpu') throw cause
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new MoeshError(
      'PROVIDER_UNAVAILABLE',
      `the execution provider "${provider}" can't run this model here: ${reason}`,
      'check the device, its driver and the format, or use --provider cpu',
      { cause },
    )
  }
}

/** Puts constants into the model and weights into files of `dir`: hard links where possible, else copies of the ranges. */
function stageWeights(graph: Graph, dir: string): OnnxTensor[] {
  const tensors: OnnxTensor[] = []
  for (const [name, { type, shape, bytes }] of graph.constants) {
    tensors.push({ name, type, shape, data: { kind: 'inline', bytes } })
  }
  const files = new StagedFiles(dir)
  try {
    for (const [name, weight] of graph.weights) {
      const { type, shape } = weight
      tensors.push({ name, type, shape, data: files.place(weight) })
    }
  } finally {
    files.close()
  }
  return tensors
}

const inlineBytesMax = 1024
const copyChunkBytes = 256 << 10
const alignment = 64

class StagedFiles {
  readonly #dir: string
  readonly #links = new Map<string, string | null>()
  #own: { fd: number; bytes: number } | null = null

  constructor(dir: string) {
    this.#dir = dir
  }

  place({ source }: Weight): OnnxTensor['data'] {
    if (source.kind === 'file') {
      const name = this.#link(source.path)
      if (name !== null) return { kind: 'file', name, offset: source.offset, bytes: source.bytes }
      return this.#copy(1, [{ path: source.path, offset: source.offset, stride: 0, bytes: source.bytes }])
    }
    if (source.kind === 'rows') return this.#copy(source.rows, source.pieces)
    if (source.bytes.byteLength <= inlineBytesMax) return { kind: 'inline', bytes: source.bytes }
    const { fd, offset } = this.#reserve(source.bytes.byteLength)
    writeAll(fd, source.bytes, offset)
    return { kind: 'file', name: 'weights.bin', offset, bytes: source.bytes.byteLength }
  }

  close(): void {
    if (this.#own !== null) closeSync(this.#own.fd)
  }

  /** Another file system can't be linked to: null. */
  #link(path: string): string | null {
    const known = this.#links.get(path)
    if (known !== undefined) return known
    const name = `file-${this.#links.size}.bin`
    let linked: string | null = name
    try {
      linkSync(path, join(this.#dir, name))
    } catch {
      linked = null
    }
    this.#links.set(path, linked)
    return linked
  }

  /** From file to file through a small buffer: weights never lie in our own memory. */
  #copy(rows: number, pieces: readonly FilePiece[]): OnnxTensor['data'] {
    const bytes = rows * pieces.reduce((sum, piece) => sum + piece.bytes, 0)
    const { fd, offset } = this.#reserve(bytes)
    const sources = new Map<string, number>()
    const out = new BufferedWriter(fd, offset)
    try {
      for (const { path } of pieces) if (!sources.has(path)) sources.set(path, openSync(path, 'r'))
      for (let row = 0; row < rows; row++) {
        for (const piece of pieces) {
          const source = sources.get(piece.path)
          if (source !== undefined) out.copy(source, piece.path, piece.offset + row * piece.stride, piece.bytes)
        }
      }
      out.flush()
    } finally {
      for (const source of sources.values()) closeSync(source)
    }
    return { kind: 'file', name: 'weights.bin', offset, bytes }
  }

  #reserve(bytes: number): { fd: number; offset: number } {
    this.#own ??= { fd: openSync(join(this.#dir, 'weights.bin'), 'w'), bytes: 0 }
    const offset = this.#own.bytes
    this.#own.bytes += Math.ceil(bytes / alignment) * alignment
    return { fd: this.#own.fd, offset }
  }
}

class BufferedWriter {
  readonly #fd: number
  readonly #buffer = Buffer.allocUnsafe(copyChunkBytes)
  #position: number
  #filled = 0

  constructor(fd: number, position: number) {
    this.#fd = fd
    this.#position = position
  }

  copy(source: number, path: string, from: number, bytes: number): void {
    for (let done = 0; done < bytes; ) {
      if (this.#filled === this.#buffer.byteLength) this.flush()
      const room = Math.min(bytes - done, this.#buffer.byteLength - this.#filled)
      const count = readSync(source, this.#buffer, this.#filled, room, from + done)
      if (count === 0) throw new MoeshError('PACK_INVALID', `${path} ends before byte ${from + bytes}`, 'pack again')
      this.#filled += count
      done += count
    }
  }

  flush(): void {
    writeAll(this.#fd, this.#buffer.subarray(0, this.#filled), this.#position)
    this.#position += this.#filled
    this.#filled = 0
  }
}

function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.byteLength; ) {
    done += writeSync(fd, bytes, done, bytes.byteLength - done, position + done)
  }
}
