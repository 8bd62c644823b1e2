import { join } from 'node:path'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import type { PublishedConfig, PublishedRope } from '../model/family.ts'
import { readJsonFile } from './json-file.ts'

const object = z.record(z.string(), z.unknown())
const theta = z.number().positive()

const configSchema = z.looseObject({
  model_type: z.string().nullish(),
  architectures: z.array(z.string()).nullish(),
  // Of the published style …
  rope_theta: theta.nullish(),
  rope_scaling: object.nullish(),
  // … and of transformers 5.
  rope_parameters: object.nullish(),
  quantization_config: object.nullish(),
})

/**
 * config.json in either of its styles: published ("hub": `rope_theta` and `rope_scaling`) or as transformers 5 writes
 * it (`rope_parameters`). Throws CHECKPOINT_INVALID, and MODEL_UNSUPPORTED for quantised checkpoints.
 */
export function readConfig(directory: string): PublishedConfig {
  const path = join(directory, 'config.json')
  const values = readJsonFile(path, configSchema)
  if (values === undefined) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${path} does not exist`,
      'a checkpoint is a directory with config.json and weights',
    )
  }
  if (values.quantization_config) {
    const method = values.quantization_config.quant_method
    throw new MoeshError(
      'MODEL_UNSUPPORTED',
      `${path}: weights quantised by ${typeof method === 'string' ? method : 'another tool'} are not read`,
      'use the unquantised version of this checkpoint: packing quantises it',
    )
  }
  return {
    path,
    modelType: values.model_type ?? null,
    architectures: values.architectures ?? [],
    rope: readRope(values, path),
    values,
  }
}

function readRope(values: z.infer<typeof configSchema>, path: string): PublishedRope {
  const parameters = values.rope_parameters ?? values.rope_scaling ?? {}
  const base = parameters.rope_theta ?? values.rope_theta ?? null
  const read = theta.nullable().safeParse(base)
  if (!read.success) throw new MoeshError('CHECKPOINT_INVALID', `${path}: rope_theta must be a positive number`)
  const type = parameters.rope_type ?? parameters.type ?? 'default'
  if (typeof type !== 'string') throw new MoeshError('CHECKPOINT_INVALID', `${path}: rope_type must be a string`)
  // Some families have one set of parameters a kind of layer; a reader of one set must not take the defaults instead.
  const nested = Object.entries(parameters).find(
    ([, value]) => value !== null && typeof value === 'object' && !Array.isArray(value),
  )
  if (nested) {
    throw new MoeshError(
      'MODEL_UNSUPPORTED',
      `${path}: rope parameters by kind of layer (${nested[0]}) are not supported`,
    )
  }
  return { theta: read.data, type, parameters }
}
