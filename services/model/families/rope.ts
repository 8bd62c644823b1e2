import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import type { PublishedConfig } from '../family.ts'
import type { RopeSpec } from '../spec.ts'

/**
 * Rotary frequencies by the name of their scaling. The reference computes them in f32, so each step is rounded here,
 * too. Throws MODEL_UNSUPPORTED for other scalings, by name.
 */
export function ropeOf(config: PublishedConfig, headDim: number, defaultTheta: number): RopeSpec {
  const { rope, path } = config
  const partial = config.values.partial_rotary_factor ?? rope.parameters.partial_rotary_factor ?? 1
  if (partial !== 1) {
    throw new MoeshError('MODEL_UNSUPPORTED', `${path}: partial_rotary_factor ${String(partial)} is not supported`)
  }
  const theta = rope.theta ?? defaultTheta
  const plain = Array.from({ length: headDim / 2 }, (_, i) => {
    const exponent = Math.fround((2 * i) / headDim)
    return Math.fround(1 / Math.fround(theta ** exponent))
  })
  const scaling = Object.hasOwn(scalings, rope.type) ? scalings[rope.type] : undefined
  if (scaling === undefined) {
    throw new MoeshError(
      'MODEL_UNSUPPORTED',
      `${path}: rope type ${rope.type} is not supported`,
      `supported are ${Object.keys(scalings).join(', ')}`,
    )
  }
  return { inverseFrequencies: scaling(plain, config), attentionFactor: 1 }
}

type Scaling = (frequencies: number[], config: PublishedConfig) => number[]

const scalings: Record<string, Scaling> = {
  default: (frequencies) => frequencies,
  linear(frequencies, config) {
    const { factor } = parameters(config, z.object({ factor: positive }))
    return frequencies.map((frequency) => Math.fround(frequency / factor))
  },
  llama3,
}

const positive = z.number().positive()
const llama3Keys = z.object({
  factor: positive,
  low_freq_factor: positive,
  high_freq_factor: positive,
  original_max_position_embeddings: positive,
})

/** Long waves are slowed by the factor, short ones stay, those between are blended. */
function llama3(frequencies: number[], config: PublishedConfig): number[] {
  const keys = parameters(config, llama3Keys)
  const low = keys.low_freq_factor
  const high = keys.high_freq_factor
  const original = keys.original_max_position_embeddings
  if (high <= low) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${config.path}: high_freq_factor (${high}) must exceed low_freq_factor (${low})`,
    )
  }
  return frequencies.map((frequency) => {
    const wavelength = Math.fround((2 * Math.PI) / frequency)
    if (wavelength > original / low) return Math.fround(frequency / keys.factor)
    if (wavelength < original / high) return frequency
    const smooth = Math.fround((original / wavelength - low) / (high - low))
    return Math.fround(((1 - smooth) * frequency) / keys.factor + smooth * frequency)
  })
}

function parameters<T>(config: PublishedConfig, schema: z.ZodType<T>): T {
  const read = schema.safeParse(config.rope.parameters)
  if (read.success) return read.data
  const [issue] = read.error.issues
  throw new MoeshError(
    'CHECKPOINT_INVALID',
    `${config.path}: rope scaling ${config.rope.type}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`,
  )
}
