import type { ErrorCode } from '../../config/errors.ts'
import type { ShardSource } from '../../expert/host.ts'
import type { WeightFormat } from '../../model/format.ts'
import type { ModelSpec } from '../../model/spec.ts'
import type { TensorEntry } from '../../pack/manifest.ts'
import type { SamplingOptions } from '../request.ts'
import type { StepBuffers, TeamLimits } from './layout.ts'

/** What a coordinator's team and its threads say to each other, beside the shared buffers. */

export type ThreadSetup = {
  spec: ModelSpec
  format: WeightFormat
  pack: { dir: string; tensors: readonly TensorEntry[] }
  thread: number
  /** The thread is bound to it; null: to none. */
  cpu: number | null
  limits: TeamLimits
  buffers: StepBuffers
  stageDir: string
  avoidSaturation: boolean
  /** Experts that this thread computes. */
  shards: readonly ShardSource[]
}

export type ToThread =
  /**
   * A sequence begins: how its tokens are drawn, and how many of its tokens are prompt. `known`: its first tokens, where
   * draws look back at them, and no step will feed them.
   */
  | {
      kind: 'begin'
      slot: number
      candidate: number
      promptTokens: number
      known: readonly number[]
      sampling: SamplingOptions
    }
  /** `slot` goes on from where `from` is, with a copy of a block that it can't share: candidates of one prompt. */
  | { kind: 'fork'; from: number; slot: number; block: { from: number; to: number } | null }
  | { kind: 'free'; slot: number }

export type FromThread = { kind: 'ready' } | { kind: 'failed'; code: ErrorCode; message: string }
