import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openCheckpoint } from '../checkpoint/checkpoint.ts'
import { MoeshError } from '../config/errors.ts'
import { countParameters } from '../model/family.ts'
import { type Dtype, type WeightFormat, weightFormats } from '../model/format.ts'
import type { ModelSpec } from '../model/spec.ts'
import { looksLikePack, openPack } from './reader.ts'
import { nodesNeeded, type PackSizes, packSizes } from './sizes.ts'

/** What `moesh inspect` shows of a checkpoint or pack. Plain data: `--json` prints it as it is. */
export type ModelDescription = {
  kind: 'checkpoint' | 'pack'
  path: string
  name: string
  family: string
  architecture: {
    layers: number
    moeLayers: number
    hidden: number
    heads: number
    kvHeads: number
    headDim: number
    /** Of MoE layers; null for dense models. */
    experts: number | null
    expertsPerToken: number | null
    expertInner: number | null
    vocabulary: number
    contextLength: number
    /** The narrowest one; null: none. */
    window: number | null
    tiedEmbeddings: boolean
  }
  parameters: { total: number; active: number }
  /** Of a pack. */
  weightFormat: WeightFormat | null
  /** Count and bytes by element type, largest first. */
  tensors: { dtype: string; count: number; bytes: number }[]
  files: { name: string; bytes: number; sha256: string | null }[]
  license: { id: string; isPermissive: boolean; notice: string | null }
  source: string
  /** Of a pack: SHA-256 of its manifest. */
  digest: string | null
  tokenizer: boolean
  chatTemplate: boolean
  /** In each format (of a pack: in its own). */
  sizes: (PackSizes & { format: WeightFormat; nodes: { memoryBytes: number; nodes: number | null }[] })[]
}

const gibibyte = 2 ** 30
const usualMemory = [8, 16, 32, 64, 128].map((size) => size * gibibyte)

/** `memoryBytes`: what a node has for shards; usual sizes if missing. Throws what opening the directory throws. */
export function describe(path: string, memoryBytes?: number): ModelDescription {
  const memory = memoryBytes === undefined ? usualMemory : [memoryBytes]
  if (looksLikePack(path)) return describePack(path, memory)
  if (existsSync(join(path, 'config.json'))) return describeCheckpoint(path, memory)
  throw new MoeshError(
    'CHECKPOINT_INVALID',
    `${path} is neither a checkpoint nor a pack`,
    'a checkpoint has config.json, a pack has manifest.json',
  )
}

function describePack(path: string, memory: readonly number[]): ModelDescription {
  const { manifest, digest, tensor } = openWithTensors(path)
  const { spec, weightFormat, shards } = manifest
  const shardBytes = shards.reduce((sum, { bytes }) => sum + bytes, 0)
  const byDtype = groupByDtype(manifest.tensors)
  if (shards.length > 0) byDtype.push({ dtype: `shards (${weightFormat})`, count: shards.length, bytes: shardBytes })
  const stated = manifest.provenance.license
  const notice = stated !== null && typeof stated === 'object' && 'notice' in stated ? stated.notice : null
  return {
    kind: 'pack',
    path,
    name: manifest.name,
    family: spec.family,
    architecture: architectureOf(spec),
    parameters: manifest.parameters,
    weightFormat,
    tensors: byDtype,
    files: manifest.files,
    license: {
      id: manifest.license,
      isPermissive: notice === null,
      notice: typeof notice === 'string' ? notice : null,
    },
    source: manifest.source,
    digest,
    tokenizer: manifest.tokenizer !== null,
    chatTemplate: manifest.chatTemplate !== null,
    sizes: [sizesIn(spec, weightFormat, tensor.dtype, memory)],
  }
}

function openWithTensors(path: string) {
  const pack = openPack(path)
  return { manifest: pack.manifest, digest: pack.digest, tensor: pack.tensor('embed') }
}

function describeCheckpoint(path: string, memory: readonly number[]): ModelDescription {
  const checkpoint = openCheckpoint(path)
  try {
    const { model, weights, license, tokenizer } = checkpoint
    const { spec } = model
    const embedding = weights.dtype(weights.tensor(model.sources('embed').tensors[0] ?? ''))
    return {
      kind: 'checkpoint',
      path,
      name: checkpoint.name,
      family: spec.family,
      architecture: architectureOf(spec),
      parameters: countParameters(spec),
      weightFormat: null,
      tensors: groupByDtype([...weights.tensors.values()]),
      files: weights.files.map((file) => ({
        name: file.path.slice(path.length).replace(/^\//, ''),
        bytes: file.bytes,
        sha256: null,
      })),
      license: { id: license.license, isPermissive: license.isPermissive, notice: license.notice },
      source: checkpoint.source,
      digest: null,
      tokenizer: tokenizer.tokenizerJson !== null,
      chatTemplate: tokenizer.chatTemplate !== null,
      sizes: weightFormats.map((format) => sizesIn(spec, format, embedding, memory)),
    }
  } finally {
    checkpoint.close()
  }
}

function sizesIn(spec: ModelSpec, format: WeightFormat, embedding: Dtype, memory: readonly number[]) {
  const sizes = packSizes(spec, format, embedding)
  return {
    format,
    ...sizes,
    nodes: memory.map((memoryBytes) => ({ memoryBytes, nodes: nodesNeeded(sizes, memoryBytes) })),
  }
}

function groupByDtype(tensors: readonly { dtype: string; bytes: number }[]): ModelDescription['tensors'] {
  const groups = new Map<string, { dtype: string; count: number; bytes: number }>()
  for (const { dtype, bytes } of tensors) {
    const group = groups.get(dtype) ?? { dtype, count: 0, bytes: 0 }
    group.count += 1
    group.bytes += bytes
    groups.set(dtype, group)
  }
  return [...groups.values()].sort((a, b) => b.bytes - a.bytes)
}

function architectureOf(spec: ModelSpec): ModelDescription['architecture'] {
  const { layers } = spec
  const moe = layers.flatMap(({ ffn }) => (ffn.kind === 'moe' ? [ffn] : []))
  const [attention] = layers.map((layer) => layer.attention)
  const windows = layers.flatMap((layer) => layer.attention.window ?? [])
  return {
    layers: layers.length,
    moeLayers: moe.length,
    hidden: spec.hidden,
    heads: attention?.heads ?? 0,
    kvHeads: attention?.kvHeads ?? 0,
    headDim: attention?.headDim ?? 0,
    experts: moe[0]?.experts ?? null,
    expertsPerToken: moe[0]?.expertsPerToken ?? null,
    expertInner: moe[0]?.inner ?? null,
    vocabulary: spec.vocabulary,
    contextLength: spec.contextLength,
    window: windows.length === 0 ? null : Math.min(...windows),
    tiedEmbeddings: spec.tiedEmbeddings,
  }
}
