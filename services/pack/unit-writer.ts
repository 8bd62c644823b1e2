import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Checkpoint } from '../checkpoint/checkpoint.ts'
import { MoeshError } from '../config/errors.ts'
import { int4Block, type WeightFormat } from '../model/format.ts'
import { expertTensors } from '../model/tensors.ts'
import { MatrixRows } from './matrix-rows.ts'
import type { OutputFile } from './output-file.ts'
import type { PlannedPart, PlannedUnit } from './plan.ts'
import { int8Scales, quantiseInt4, quantiseInt8, transposeRows } from './quantise.ts'

/** What packing may hold at once. The bytes of a pack do not depend on it. */
export type PackMemory = {
  /** Elements read from a checkpoint at once, as f32. */
  chunkElements: number
  /**
   * Bytes of a turned matrix. A matrix beyond it is made in strips of inputs, and its source read once a strip; most
   * experts fit whole.
   */
  stripBytes: number
}
export const defaultPackMemory: PackMemory = { chunkElements: 4 * 1024 * 1024, stripBytes: 128 * 1024 * 1024 }

/**
 * Writes the units of a pack: reads their tensors in chunks, turns and quantises them. Memory is one chunk, one strip
 * and the scales of one matrix, whatever the model; it is taken once, since large arrays are given back late.
 */
export class UnitWriter {
  readonly #checkpoint: Checkpoint
  readonly #format: WeightFormat
  /** Called often: after each chunk that was read, and each that was written. Throws to stop. */
  readonly #onChunk: () => void
  readonly #memory: PackMemory
  #chunk = new Float32Array(0)
  #strip = new Uint8Array(0)

  constructor(checkpoint: Checkpoint, format: WeightFormat, onChunk: () => void, memory = defaultPackMemory) {
    this.#checkpoint = checkpoint
    this.#format = format
    this.#onChunk = onChunk
    this.#memory = memory
  }

  /** Throws CHECKPOINT_INVALID or MODEL_UNSUPPORTED, naming the tensor. */
  async write(unit: PlannedUnit, file: OutputFile): Promise<void> {
    const { model, weights } = this.#checkpoint
    if (unit.kind === 'shard') {
      let at = 0
      for (const { name, shape } of expertTensors(model.spec, unit.ffn)) {
        const [inputs = 0, outputs = 0] = shape
        const parts = unit.parts.filter((part) => part.name.startsWith(`${name}.`))
        const { tensors } = model.expertSources(unit.layer, unit.expert, name)
        await this.#linear(new MatrixRows(weights, tensors, inputs, outputs), parts, file)
        at += parts.length
      }
      if (at !== unit.parts.length) throw new MoeshError('INTERNAL', 'a part of a shard belongs to no tensor')
      file.padTo(unit.offset + unit.bytes)
      return
    }
    const { name, kind, shape } = unit.tensor
    const { tensors } = model.sources(name)
    const [part] = unit.parts
    if (part === undefined) throw new MoeshError('INTERNAL', `tensor ${name} has no parts`)
    switch (kind) {
      case 'linear':
        return this.#linear(new MatrixRows(weights, tensors, shape[0] ?? 0, shape[1] ?? 0), unit.parts, file)
      case 'router':
        return this.#turned(new MatrixRows(weights, tensors, shape[0] ?? 0, shape[1] ?? 0), part, file)
      case 'embedding':
        return this.#copied(tensors[0] ?? '', shape, part, file)
      case 'vector':
        return this.#vector(tensors, shape[0] ?? 0, part, file)
    }
  }

  async #linear(rows: MatrixRows, parts: readonly PlannedPart[], file: OutputFile): Promise<void> {
    const [first, second] = parts
    if (first === undefined) throw new MoeshError('INTERNAL', 'a linear layer has no parts')
    if (this.#format === 'f32') return this.#turned(rows, first, file)
    if (second === undefined) throw new MoeshError('INTERNAL', `${first.name} has no scale`)
    return this.#format === 'int4' ? this.#int4(rows, first, second, file) : this.#int8(rows, first, second, file)
  }

  /** [inputs, outputs] f32. */
  async #turned(rows: MatrixRows, part: PlannedPart, file: OutputFile): Promise<void> {
    const { inputs, outputs } = rows
    file.padTo(part.offset)
    for (const { from, to } of strips(inputs, outputs * 4, this.#memory.stripBytes)) {
      const strip = this.#stripOf((to - from) * outputs * 4)
      const floats = new Float32Array(strip.buffer, 0, (to - from) * outputs)
      for await (const { chunk, start, count } of this.#chunks(rows)) {
        transposeRows(chunk, count, inputs, from, to, floats, outputs, start)
      }
      await this.#flush(strip, file)
    }
  }

  /** q [inputs, outputs] i8, then scale [outputs] f32. The first strip makes the scales, the others find them. */
  async #int8(rows: MatrixRows, q: PlannedPart, scale: PlannedPart, file: OutputFile): Promise<void> {
    const { inputs, outputs } = rows
    const scales = new Float32Array(outputs)
    file.padTo(q.offset)
    for (const { from, to } of strips(inputs, outputs, this.#memory.stripBytes)) {
      const strip = this.#stripOf((to - from) * outputs)
      const bytes = new Int8Array(strip.buffer, 0, strip.length)
      for await (const { chunk, start, count } of this.#chunks(rows)) {
        if (from === 0) int8Scales(chunk, count, inputs, scales, start)
        quantiseInt8(chunk, count, inputs, from, to, scales, bytes, outputs, start)
      }
      await this.#flush(strip, file)
    }
    file.padTo(scale.offset)
    file.write(bytesOf(scales))
  }

  /** q [outputs, blocks, block / 2] u8, then scale [outputs, blocks] f32: rows stay rows, so there are no strips. */
  async #int4(rows: MatrixRows, q: PlannedPart, scale: PlannedPart, file: OutputFile): Promise<void> {
    const { inputs, outputs } = rows
    const block = int4Block(inputs)
    const blocks = Math.ceil(inputs / block)
    const scales = new Float32Array(outputs * blocks)
    file.padTo(q.offset)
    for await (const { chunk, start, count } of this.#chunks(rows)) {
      const nibbles = this.#stripOf((count * blocks * block) / 2)
      quantiseInt4(chunk, count, inputs, block, nibbles, scales, start * blocks)
      file.write(nibbles)
    }
    file.padTo(scale.offset)
    file.write(bytesOf(scales))
  }

  /** An embedding, byte for byte. */
  async #copied(name: string, shape: readonly number[], part: PlannedPart, file: OutputFile): Promise<void> {
    const tensor = this.#checkpoint.weights.tensor(name, shape)
    file.padTo(part.offset)
    for (let done = 0; done < part.bytes; ) {
      const chunk = this.#stripOf(Math.min(this.#memory.chunkElements * 4, part.bytes - done))
      tensor.file.readAt(chunk, tensor.offset + done)
      file.write(chunk)
      done += chunk.length
      await this.#turn()
    }
  }

  async #vector(tensors: readonly string[], size: number, part: PlannedPart, file: OutputFile): Promise<void> {
    const { weights } = this.#checkpoint
    const values = new Float32Array(size)
    const pieceSize = size / tensors.length
    for (const [index, name] of tensors.entries()) {
      weights.readFloats(weights.tensor(name, [pieceSize]), 0, pieceSize, values, index * pieceSize)
    }
    file.padTo(part.offset)
    file.write(bytesOf(values))
    await this.#turn()
  }

  async *#chunks(rows: MatrixRows): AsyncGenerator<{ chunk: Float32Array; start: number; count: number }> {
    const rowsMax = Math.max(1, Math.floor(this.#memory.chunkElements / rows.inputs))
    for (let start = 0; start < rows.outputs; start += rowsMax) {
      const count = Math.min(rowsMax, rows.outputs - start)
      if (this.#chunk.length < count * rows.inputs) this.#chunk = new Float32Array(count * rows.inputs)
      rows.read(start, count, this.#chunk)
      yield { chunk: this.#chunk, start, count }
      await this.#turn()
    }
  }

  async #flush(strip: Uint8Array, file: OutputFile): Promise<void> {
    const step = this.#memory.chunkElements * 4
    for (let done = 0; done < strip.length; done += step) {
      file.write(strip.subarray(done, done + step))
      await this.#turn()
    }
  }

  #stripOf(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#strip.length < bytes) this.#strip = new Uint8Array(bytes)
    return this.#strip.subarray(0, bytes)
  }

  /** Lets the rest of the process have its turn: an abort is seen, a server stays alive. */
  async #turn(): Promise<void> {
    this.#onChunk()
    await nextTurn()
  }
}

function strips(inputs: number, inputBytes: number, stripBytes: number): { from: number; to: number }[] {
  const size = Math.max(1, Math.floor(stripBytes / inputBytes))
  return Array.from({ length: Math.ceil(inputs / size) }, (_, index) => ({
    from: index * size,
    to: Math.min(inputs, (index + 1) * size),
  }))
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}
