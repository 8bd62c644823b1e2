import { readFileSync, statSync } from 'node:fs'
import type { z } from 'zod'
import { MoeshError } from '../config/errors.ts'

/** Configurations and indexes are small; a tokenizer of 256k entries takes about 35 MB. */
export const jsonBytesMax = 256 * 1024 * 1024

/**
 * A JSON file, read by its schema. Throws CHECKPOINT_INVALID (or `code`), naming the file and the key.
 * `undefined` where the file does not exist.
 */
export function readJsonFile<T>(
  path: string,
  schema: z.ZodType<T>,
  code: 'CHECKPOINT_INVALID' | 'PACK_INVALID' = 'CHECKPOINT_INVALID',
): T | undefined {
  const text = readTextFile(path, code)
  if (text === undefined) return undefined
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new MoeshError(code, `${path} is not valid JSON`, 'download it again', { cause })
  }
  const read = schema.safeParse(value)
  if (read.success) return read.data
  const [issue] = read.error.issues
  const key = issue?.path.join('.') || 'the document'
  throw new MoeshError(code, `${path}: ${key}: ${issue?.message ?? 'not as expected'}`, '', { cause: read.error })
}

/** A UTF-8 file of at most `jsonBytesMax`; `undefined` where it does not exist. */
export function readTextFile(
  path: string,
  code: 'CHECKPOINT_INVALID' | 'PACK_INVALID' = 'CHECKPOINT_INVALID',
): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) return undefined
  if (!stat.isFile()) throw new MoeshError(code, `${path} is not a file`)
  if (stat.size > jsonBytesMax) {
    throw new MoeshError(code, `${path} has ${stat.size} bytes, more than the ${jsonBytesMax} that are read`)
  }
  return readFileSync(path, 'utf8')
}
