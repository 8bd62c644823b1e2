import type { OutputBuffer, RowBuffer } from '../dispatch/rows.ts'
import type { WeightFormat } from '../model/format.ts'
import type { ModelSpec } from '../model/spec.ts'
import type { Provider } from '../runtime/session.ts'
import type { ShardSource } from './host.ts'

/** What a host and its rank threads say to each other. Loading goes by messages, computing through shared words. */

export type RankSetup = {
  spec: ModelSpec
  format: WeightFormat
  provider: Provider
  stageDir: string
  avoidSaturation: boolean
  /** The thread is bound to it; null: to none. */
  cpu: number | null
  control: Int32Array<SharedArrayBuffer>
  /** ms of the last job, and of all jobs so far the ms inside ONNX Runtime. */
  computeMs: Float64Array<SharedArrayBuffer>
}

export type ToRank =
  | { kind: 'load'; ticket: number; layer: number; shards: ShardSource[] }
  /** Sessions are built that an unload of these experts will leave; until then nothing changes. */
  | { kind: 'prepare-unload'; ticket: number; layer: number; experts: number[] }
  | { kind: 'unload'; ticket: number; layer: number; experts: number[] }
  | { kind: 'attach-rows'; rows: RowBuffer }
  | { kind: 'attach-outputs'; outputs: OutputBuffer }
  | { kind: 'attach-job'; job: Int32Array<SharedArrayBuffer> }
  | { kind: 'close' }

export type FromRank =
  | { kind: 'done'; ticket: number }
  | { kind: 'failed'; ticket: number; code: string; message: string }
  | { kind: 'job-failed'; message: string }

/** Words of `control`. */
export const controlWords = {
  /** Raised by the host: there is something to do. */
  wake: 0,
  /** Jobs posted, jobs finished; equal when the rank is idle. */
  posted: 1,
  finished: 2,
  /** The last job failed. */
  failed: 3,
  /** Messages sent by the host so far; counted once they can be received. */
  sent: 4,
  size: 16,
} as const

/**
 * A job in shared words: this header, then the call's expert ids, counts and row indices. It names the experts of every
 * rank; a rank computes those that it holds, `rowsHere` rows in all.
 */
export const jobHeader = {
  layer: 0,
  experts: 1,
  rows: 2,
  rowsHere: 3,
  rowsId: 4,
  outputsId: 5,
  outputStart: 6,
  size: 8,
} as const
