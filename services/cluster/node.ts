import { z } from 'zod'

/**
 * What is known of a node. A record says what the process is and never changes in its life; a status changes when shards
 * come and go; gauges change all the time and matter only to people and to the number of nodes.
 */

export const nodeRecordSchema = z.object({
  /** Unique in the cluster. */
  id: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/, 'letters, digits, ".", "_" and "-", at most 128'),
  /** Drawn when the process starts: tells a node that came back from one that never left. */
  incarnation: z.string().min(1).max(64),
  role: z.enum(['coordinator', 'expert']),
  /** What peers dial, HOST:PORT; in the embedded form any name. */
  address: z.string().max(512),
  /** Failure zone; empty: none given. */
  zone: z.string().max(128),
  /** What shards may take; 0 for a coordinator that holds none. */
  memoryBytes: z.number().int().nonnegative(),
  ranks: z.number().int().nonnegative(),
  provider: z.string().max(64),
  /** Class of nodes that compute equal bits. */
  numerics: z.string().max(128),
  protocolVersion: z.number().int().nonnegative(),
  version: z.string().max(64),
  /** Digest of the pack's manifest; empty for an expert node that takes whatever the cluster serves. */
  modelDigest: z.string().max(128),
})
export type NodeRecord = z.infer<typeof nodeRecordSchema>

/** Shards held: by layer the experts as a bitmap, expert e in bit e % 8 of byte e / 8, base64. */
export const heldSchema = z.record(z.string().regex(/^\d{1,4}$/), z.string().max(8192))
export type Held = z.infer<typeof heldSchema>

export const nodeStatusSchema = z.object({
  /** As the node itself sees it: `leaving` asks for everything to be moved off before it exits. */
  state: z.enum(['joining', 'ready', 'leaving']),
  /** Why it is not ready, for people. */
  reason: z.string().max(1024),
  usedBytes: z.number().int().nonnegative(),
  /** Loaded and computing: routing believes this and nothing else. */
  held: heldSchema,
  /** Target epoch that the node has loaded completely; 0: none yet. */
  epoch: z.number().int().nonnegative(),
})
export type NodeStatus = z.infer<typeof nodeStatusSchema>

export const nodeGaugesSchema = z.object({
  rowsPerSecond: z.number().nonnegative(),
  runningRequests: z.number().nonnegative(),
  queuedRequests: z.number().nonnegative(),
  tokensPerSecond: z.number().nonnegative(),
  /** Share of the time that the ranks compute, their mean, 0 to 1; a recent one. Older nodes say nothing. */
  busy: z.number().nonnegative().default(0),
  /** How long a call waits on the node before its rows are computed; a recent mean. */
  queueMs: z.number().nonnegative().default(0),
})
export type NodeGauges = z.infer<typeof nodeGaugesSchema>

export const noGauges: NodeGauges = {
  rowsPerSecond: 0,
  runningRequests: 0,
  queuedRequests: 0,
  tokensPerSecond: 0,
  busy: 0,
  queueMs: 0,
}

/** A node as the store lists it. */
export type NodeEntry = { record: NodeRecord; status: NodeStatus }

export const emptyStatus: NodeStatus = { state: 'joining', reason: '', usedBytes: 0, held: {}, epoch: 0 }
