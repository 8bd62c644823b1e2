import type { Dtype, WeightFormat } from '../model/format.ts'
import { type ModelSpec, moeLayers } from '../model/spec.ts'
import { shardLayout } from '../model/tensors.ts'
import { coordinatorFile, planPack } from './plan.ts'

/** Bytes of a model in a format: what a coordinator holds, and what expert nodes share. */
export type PackSizes = {
  coordinatorBytes: number
  expertBytes: number
  /** Of one (layer, expert); 0 for dense models. The largest, where layers differ. */
  shardBytes: number
  shardCount: number
}

export function packSizes(spec: ModelSpec, format: WeightFormat, embeddingDtype: Dtype): PackSizes {
  const [coordinator] = planPack(spec, format, embeddingDtype).filter(({ name }) => name === coordinatorFile)
  const layers = moeLayers(spec).map(({ ffn }) => ({ bytes: shardLayout(spec, ffn, format).bytes, count: ffn.experts }))
  return {
    coordinatorBytes: coordinator?.bytes ?? 0,
    expertBytes: layers.reduce((sum, { bytes, count }) => sum + bytes * count, 0),
    shardBytes: Math.max(0, ...layers.map(({ bytes }) => bytes)),
    shardCount: layers.reduce((sum, { count }) => sum + count, 0),
  }
}

/**
 * Expert nodes that hold every shard once, each with `memoryBytes` for shards; a shard is not divided. null: not even
 * one shard fits. 0 for dense models.
 */
export function nodesNeeded({ shardBytes, shardCount }: PackSizes, memoryBytes: number): number | null {
  if (shardCount === 0) return 0
  const shardsPerNode = Math.floor(memoryBytes / shardBytes)
  return shardsPerNode === 0 ? null : Math.ceil(shardCount / shardsPerNode)
}
