import { z } from 'zod'
import { weightFormats } from '../model/format.ts'

/** `manifest.json` of a pack. It is written last: a directory without it is an unfinished pack. */
export const packFormatVersion = 1

const attention = z.strictObject({
  heads: z.int().positive(),
  kvHeads: z.int().positive(),
  headDim: z.int().positive().multipleOf(4),
  scale: z.number().positive(),
  rope: z.strictObject({ inverseFrequencies: z.array(z.number()), attentionFactor: z.number() }),
  window: z.int().positive().nullable(),
  qkNorm: z.enum(['none', 'head', 'full']),
  clip: z.number().positive().nullable(),
  qkvBias: z.boolean(),
  outputBias: z.boolean(),
})

const activation = z.enum(['silu', 'gelu_tanh'])

const ffn = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('dense'),
    inner: z.int().positive(),
    activation,
    bias: z.boolean(),
  }),
  z.strictObject({
    kind: z.literal('moe'),
    inner: z.int().positive(),
    activation,
    experts: z.int().positive(),
    expertsPerToken: z.int().positive(),
    router: z.strictObject({ score: z.literal('softmax'), normalise: z.boolean() }),
  }),
])

export const modelSpecSchema = z.strictObject({
  family: z.string(),
  hidden: z.int().positive(),
  vocabulary: z.int().positive(),
  contextLength: z.int().positive(),
  normEps: z.number().positive(),
  tiedEmbeddings: z.boolean(),
  layers: z.array(z.strictObject({ attention, ffn })).min(1),
  bosTokenId: z.int().nullable(),
  eosTokenIds: z.array(z.int()),
})

const sha256 = z.string().regex(/^[0-9a-f]{64}$/)
const dtype = z.enum(['f32', 'bf16', 'f16', 'i8', 'u8'])

/** A tensor of the coordinator's: `NAME` or, for a linear layer, `NAME.PART`. Offsets are multiples of 64. */
const tensorEntry = z.strictObject({
  name: z.string(),
  file: z.string(),
  offset: z.int().nonnegative(),
  bytes: z.int().nonnegative(),
  dtype,
  shape: z.array(z.int().nonnegative()),
})

/** One (layer, expert): a contiguous piece of a file, laid out as `shardLayout` says; offsets are multiples of 4096. */
const shardEntry = z.strictObject({
  layer: z.int().nonnegative(),
  expert: z.int().nonnegative(),
  file: z.string(),
  offset: z.int().nonnegative(),
  bytes: z.int().positive(),
  sha256,
})

export const manifestSchema = z.strictObject({
  formatVersion: z.literal(packFormatVersion),
  tool: z.string(),
  /** The model's id in the API. */
  name: z.string().min(1),
  weightFormat: z.enum(weightFormats),
  spec: modelSpecSchema,
  parameters: z.strictObject({ total: z.int().positive(), active: z.int().positive() }),
  /** SPDX id where known; "unknown" where the checkpoint does not say. */
  license: z.string(),
  source: z.string(),
  provenance: z.record(z.string(), z.unknown()),
  /** Defaults of sampling, from generation_config.json. */
  generation: z.strictObject({
    temperature: z.number().nullable(),
    topP: z.number().nullable(),
    topK: z.int().nullable(),
    minP: z.number().nullable(),
    repetitionPenalty: z.number().nullable(),
  }),
  /** Copied beside the manifest; null where the checkpoint has none. */
  tokenizer: z.strictObject({ tokenizerJson: z.string(), tokenizerConfigJson: z.string().nullable() }).nullable(),
  chatTemplate: z.string().nullable(),
  /** Every file of the pack but the manifest, with its size and digest. */
  files: z.array(z.strictObject({ name: z.string(), bytes: z.int().nonnegative(), sha256 })),
  tensors: z.array(tensorEntry),
  shards: z.array(shardEntry),
})

export type Manifest = z.infer<typeof manifestSchema>
export type TensorEntry = z.infer<typeof tensorEntry>
export type ShardEntry = z.infer<typeof shardEntry>
