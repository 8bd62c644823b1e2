import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { toFloats, type WeightDtype, weightDtype } from './dtype.ts'
import { readJsonFile } from './json-file.ts'
import { SafetensorsFile } from './safetensors.ts'
import type { SafetensorsEntry } from './safetensors-header.ts'

const indexName = 'model.safetensors.index.json'
const singleName = 'model.safetensors'
/** The largest published checkpoints have about 200 shards. */
const shardsMax = 4096
/** Bytes read from a file at once. */
const chunkBytes = 4 * 1024 * 1024

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) })

export type CheckpointTensor = SafetensorsEntry & { file: SafetensorsFile }

/** All tensors of a checkpoint, over one safetensors file or several shards with an index. */
export class Weights {
  readonly files: readonly SafetensorsFile[]
  readonly tensors: ReadonlyMap<string, CheckpointTensor>
  readonly #chunk = Buffer.allocUnsafeSlow(chunkBytes)

  constructor(files: readonly SafetensorsFile[]) {
    this.files = files
    const tensors = new Map<string, CheckpointTensor>()
    for (const file of files) {
      for (const entry of file.entries.values()) {
        const other = tensors.get(entry.name)
        if (other) {
          throw new MoeshError(
            'CHECKPOINT_INVALID',
            `tensor ${entry.name} is in ${other.file.path} and again in ${file.path}`,
          )
        }
        tensors.set(entry.name, { ...entry, file })
      }
    }
    this.tensors = tensors
  }

  has(name: string): boolean {
    return this.tensors.has(name)
  }

  /** Throws CHECKPOINT_INVALID for a missing tensor or one of another shape. */
  tensor(name: string, shape?: readonly number[]): CheckpointTensor {
    const tensor = this.tensors.get(name)
    if (!tensor) {
      throw new MoeshError(
        'CHECKPOINT_INVALID',
        `the checkpoint has no tensor ${name}, which its configuration asks for`,
        `files read: ${this.files.map(({ path }) => path).join(', ')}`,
      )
    }
    if (shape && (tensor.shape.length !== shape.length || shape.some((size, axis) => tensor.shape[axis] !== size))) {
      throw new MoeshError(
        'CHECKPOINT_INVALID',
        `${tensor.file.path}: tensor ${name} is [${tensor.shape.join(', ')}], its configuration asks for [${shape.join(', ')}]`,
      )
    }
    return tensor
  }

  /** Throws MODEL_UNSUPPORTED for types that weights are not read from. */
  dtype(tensor: CheckpointTensor): WeightDtype {
    return weightDtype(tensor.dtype, tensor.name, tensor.file.path)
  }

  /**
   * Elements `start …` of a tensor (row-major) as f32 to `out[at …]`. Throws CHECKPOINT_INVALID where one is not finite.
   */
  readFloats(tensor: CheckpointTensor, start: number, count: number, out: Float32Array, at = 0): void {
    const dtype = this.dtype(tensor)
    const elementBytes = dtype === 'f32' ? 4 : 2
    const elementsMax = chunkBytes / elementBytes
    for (let done = 0; done < count; ) {
      const step = Math.min(elementsMax, count - done)
      const chunk = this.#chunk.subarray(0, step * elementBytes)
      tensor.file.readAt(chunk, tensor.offset + (start + done) * elementBytes)
      toFloats(chunk, dtype, step, out, at + done)
      done += step
    }
    if (!allFinite(out, at, count)) {
      throw new MoeshError(
        'CHECKPOINT_INVALID',
        `${tensor.file.path}: tensor ${tensor.name} holds a value that is not finite`,
      )
    }
  }

  close(): void {
    for (const file of this.files) file.close()
  }
}

/** x - x is 0 for what is finite and NaN for what is not: one addition an element, no branch. */
function allFinite(values: Float32Array, start: number, count: number): boolean {
  let sum = 0
  for (let i = start; i < start + count; i++) {
    const value = values[i] as number
    sum += value - value
  }
  return sum === 0
}

/** Opens every weights file of a checkpoint directory. Throws CHECKPOINT_INVALID. */
export function openWeights(directory: string): Weights {
  const index = readJsonFile(join(directory, indexName), indexSchema)
  const names = index ? shardNames(index.weight_map, directory) : [singleName]
  if (!index && !existsSync(join(directory, singleName))) throw noWeights(directory)
  const files: SafetensorsFile[] = []
  try {
    for (const name of names) files.push(new SafetensorsFile(join(directory, name)))
    const weights = new Weights(files)
    for (const [tensor, name] of Object.entries(index?.weight_map ?? {})) {
      const found = weights.tensors.get(tensor)
      if (found?.file.path !== join(directory, name)) {
        throw new MoeshError(
          'CHECKPOINT_INVALID',
          `${indexName} says that tensor ${tensor} is in ${name}, and it is not`,
        )
      }
    }
    return weights
  } catch (error) {
    for (const file of files) file.close()
    throw error
  }
}

function shardNames(weightMap: Record<string, string>, directory: string): string[] {
  const names = [...new Set(Object.values(weightMap))].sort()
  const path = join(directory, indexName)
  if (names.length === 0) throw new MoeshError('CHECKPOINT_INVALID', `${path} lists no tensors`)
  if (names.length > shardsMax) throw new MoeshError('CHECKPOINT_INVALID', `${path} lists more than ${shardsMax} files`)
  for (const name of names) {
    // The index comes from outside: it must not reach files beside the checkpoint.
    if (!/^[\w][\w.-]*\.safetensors$/.test(name)) {
      throw new MoeshError(
        'CHECKPOINT_INVALID',
        `${path} names ${JSON.stringify(name)}, which is no safetensors file of this directory`,
      )
    }
  }
  return names
}

function noWeights(directory: string): MoeshError {
  const names = existsSync(directory) ? readdirSync(directory) : []
  const hint = names.some((name) => name.endsWith('.safetensors'))
    ? `several weights files need their ${indexName}: download it too`
    : names.some((name) => /\.(bin|pth?|gguf)$/.test(name))
      ? 'only safetensors weights are read: use the safetensors version of this checkpoint'
      : 'a checkpoint has config.json and *.safetensors files'
  return new MoeshError('CHECKPOINT_INVALID', `${directory} has neither ${singleName} nor ${indexName}`, hint)
}
