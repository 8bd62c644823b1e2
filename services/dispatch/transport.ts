import type { Cancellation } from './cancellation.ts'
import type { OutputBuffer, RowBuffer } from './rows.ts'

/**
 * One node's part of a layer's dispatch. The rows of expert `experts[i]` are the next `counts[i]` entries of
 * `rowIndices`, which point into `rows`; a row that several experts want is listed once for each of them.
 * The caller owns all arrays; they must stay as they are until the call has settled.
 */
export type ExpertCall = {
  readonly layer: number
  /** Ascending expert ids. */
  readonly experts: Int32Array
  readonly counts: Int32Array
  readonly rowIndices: Int32Array
  readonly rows: RowBuffer
  /**
   * Result: [sum(counts), hidden] f32 in the order of `rowIndices`, written from row `outputStart` on.
   * Nothing is written after the call has settled.
   */
  readonly outputs: OutputBuffer
  readonly outputStart: number
}

export type ExpertReply = {
  /** The node's own computing time, from its clock. */
  readonly computeMs: number
}

/**
 * The way to one expert node: shared memory or gRPC. One contract test runs against both.
 * Errors: EXPERT_NOT_HELD (the node refused: it does not hold one of the experts; nothing was computed), NODE_LOST
 * (connection or node gone), CANCELLED (by the caller), INTERNAL.
 */
export interface ExpertTransport {
  readonly nodeId: string
  /** Several calls may be in flight. One that is cancelled settles at once. */
  call(call: ExpertCall, cancellation?: Cancellation): Promise<ExpertReply>
  /** Ends it; calls in flight fail with NODE_LOST. */
  close(): Promise<void>
}

/** A layer's rows with the router's choice, on their way to the experts. */
export type RoutedRows = {
  readonly layer: number
  readonly rowCount: number
  readonly expertsPerToken: number
  /** [rowCount, expertsPerToken], ascending in each row. */
  readonly expertIds: Int32Array
  readonly rows: RowBuffer
  readonly outputs: OutputBuffer
  /** Result, [rowCount, expertsPerToken]: the output row of each pair. */
  readonly outputRows: Int32Array
}

/** What a dispatch cost beyond the first try. */
export type DispatchReport = { retriedRows: number; computeMs: number }

/** Sends a layer's rows to the nodes that hold their experts and brings every output back, whatever fails on the way. */
export interface Dispatcher {
  /** Settles when all outputs are in place. It waits while an expert has no live copy; fails only if cancelled. */
  dispatch(routed: RoutedRows, cancellation?: Cancellation): Promise<DispatchReport>
}
