import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'
import type { PublishedConfig } from '../family.ts'
import type { Activation } from '../spec.ts'

/**
 * Keys of a config as zod types. A key that equals its default may be missing from a published config, and null
 * stands for "missing" in many of them.
 */
export const integer = (fallback: number) =>
  nullish(
    z
      .int()
      .positive()
      .max(2 ** 31),
    fallback,
  )
export const number = (fallback: number) => nullish(z.number().positive(), fallback)
export const flag = (fallback: boolean) => nullish(z.boolean(), fallback)
export const optionalInteger = () =>
  nullish(
    z
      .int()
      .positive()
      .max(2 ** 31),
    null,
  )
export const optionalNumber = () => nullish(z.number().positive(), null)

function nullish<T, D>(type: z.ZodType<T>, fallback: D) {
  return type.nullish().transform((value): T | D => value ?? fallback)
}

const tokenId = z.int().nonnegative()

/** One id, a list of them, or none. */
export const tokenIds = (fallback: readonly number[]) =>
  z
    .union([tokenId, z.array(tokenId).max(64)])
    .nullish()
    .transform((value): number[] => (value == null ? [...fallback] : [value].flat()))

/** Missing is the default, null is "none". */
export const optionalTokenId = (fallback: number | null) => tokenId.nullable().default(fallback)

const activationNames: Record<string, Activation> = {
  silu: 'silu',
  swish: 'silu',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_new: 'gelu_tanh',
}

/** Throws MODEL_UNSUPPORTED by name. */
export function activationOf(name: string, config: PublishedConfig): Activation {
  const activation = Object.hasOwn(activationNames, name) ? activationNames[name] : undefined
  if (activation !== undefined) return activation
  throw new MoeshError(
    'MODEL_UNSUPPORTED',
    `${config.path}: hidden_act ${name} is not supported`,
    `supported are ${Object.keys(activationNames).join(', ')}`,
  )
}

/** The keys that a family reads. Throws CHECKPOINT_INVALID, naming the key. */
export function readKeys<T>(config: PublishedConfig, schema: z.ZodType<T>): T {
  const read = schema.safeParse(config.values)
  if (read.success) return read.data
  const [issue] = read.error.issues
  throw new MoeshError('CHECKPOINT_INVALID', `${config.path}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`)
}
