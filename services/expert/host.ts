import type { ExpertCall, ExpertReply } from '../dispatch/transport.ts'
import type { WeightFormat } from '../model/format.ts'
import type { ModelSpec } from '../model/spec.ts'
import { type CpuChoice, defaultThreads } from '../runtime/cpus.ts'

export type ShardId = { layer: number; expert: number }

/** Where the bytes of a shard lie: laid out as `shardLayout` says. */
export type ShardSource = ShardId & { path: string; offset: number; bytes: number }

/** `cpu` computes on this thread's core; `webgpu` and `cuda` on a device. Used or refused, never silently replaced. */
export type Provider = 'cpu' | 'webgpu' | 'cuda'

/** Of a process that is not told how many: a rank for each CPU that it is given, or one for its device. */
export function defaultRanks(provider: Provider, cpus: CpuChoice | undefined): number {
  return provider === 'cpu' ? defaultThreads(cpus) : 1
}

export type ExpertHostOptions = {
  spec: ModelSpec
  format: WeightFormat
  ranks: number
  provider: Provider
  /** Those that ranks are bound to; null: none. */
  cpus: readonly number[] | null
  /** Where session files are staged; the shards' file system if possible (hard links instead of copies). */
  stageDir: string
}

/**
 * The experts that one node holds, spread over its ranks (worker threads). It is what a shared-memory transport calls
 * and what the gRPC server of an expert process wraps.
 */
export interface ExpertHost {
  readonly ranks: number
  /** Never settles while all is well; then with why a rank has ended. Its experts are computed by nobody here any more. */
  readonly failed: Promise<Error>
  /** Loads beside what is there; resolves when all of them compute. Loading what is held already changes nothing. */
  load(shards: readonly ShardSource[]): Promise<void>
  /** Calls in flight finish first. */
  unload(shards: readonly ShardId[]): Promise<void>
  /** Held and computing. */
  held(): ReadonlyMap<number, ReadonlySet<number>>
  /** Bytes of the shards held. */
  usedBytes(): number
  /** Throws EXPERT_NOT_HELD before anything is computed. */
  call(call: ExpertCall): Promise<ExpertReply>
  /** What all ranks together have computed so far, in ms. */
  computedMs(): number
  /** How much of it inside ONNX Runtime. */
  runtimeMs(): number
  close(): Promise<void>
}
