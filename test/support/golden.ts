import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { repository } from './packs.ts'

/**
 * Reference outputs of tiny checkpoints, computed by Hugging Face transformers; test/goldens/README.md says what they
 * are.
 */
export type Golden = {
  directory: string
  moeLayers: number[]
  topK: number
  logitTolerance: number
  prompts: { ids: number[]; greedy: number[]; text?: string | undefined }[]
  /** [rows, columns] of a reference tensor. */
  floats(name: string): { rows: number; columns: number; data: Float32Array }
  ints(name: string): { rows: number; columns: number; data: Int32Array }
}

const goldenSchema = z.object({
  moe_layers: z.array(z.number()),
  top_k_experts: z.number().nullable(),
  tolerance: z.object({ logit_abs: z.number() }),
  prompts: z.array(z.object({ ids: z.array(z.number()), greedy: z.array(z.number()), text: z.string().optional() })),
})

export function goldenDirectory(name: string): string {
  return join(repository, 'test', 'goldens', name)
}

export function readGolden(directory: string): Golden {
  const golden = goldenSchema.parse(JSON.parse(readFileSync(join(directory, 'golden.json'), 'utf8')))
  const file = readFileSync(join(directory, 'golden.safetensors'))
  const headerBytes = Number(file.readBigUInt64LE(0))
  const header = z
    .record(
      z.string(),
      z.object({ dtype: z.string(), shape: z.array(z.number()), data_offsets: z.array(z.number()) }).or(z.any()),
    )
    .parse(JSON.parse(file.subarray(8, 8 + headerBytes).toString('utf8')))
  const tensor = (name: string) => {
    const { shape, data_offsets: offsets } = z
      .object({ shape: z.array(z.number()), data_offsets: z.tuple([z.number(), z.number()]) })
      .parse(header[name])
    const base = 8 + headerBytes
    const bytes = Uint8Array.from(file.subarray(base + offsets[0], base + offsets[1]))
    return { rows: shape[0] ?? 0, columns: shape[1] ?? 0, bytes }
  }
  return {
    directory,
    moeLayers: golden.moe_layers,
    topK: golden.top_k_experts ?? 0,
    logitTolerance: golden.tolerance.logit_abs,
    prompts: golden.prompts,
    floats: (name) => {
      const { rows, columns, bytes } = tensor(name)
      return { rows, columns, data: new Float32Array(bytes.buffer) }
    },
    ints: (name) => {
      const { rows, columns, bytes } = tensor(name)
      return { rows, columns, data: new Int32Array(bytes.buffer) }
    },
  }
}
