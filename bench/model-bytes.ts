import { linearParts, partBytes, type WeightFormat } from '../services/model/format.ts'
import { ggmlBytes } from './ggml-blocks.ts'
import type { PeerFormat } from './gguf.ts'
import type { BenchShape } from './shape.ts'

/** Bytes that a step of decoding has to read: what it costs at least on a machine bound by its memory. */

/** Bytes of a linear layer's weights in a format, and of one element of the KV cache. */
type Storage = { linearBytes: (inputs: number, outputs: number) => number; kvElementBytes: number }

export function ourStorage(format: WeightFormat): Storage {
  return {
    linearBytes: (inputs, outputs) =>
      linearParts(format, inputs, outputs).reduce((sum, part) => sum + partBytes(part), 0),
    kvElementBytes: 4,
  }
}

export function peerStorage(format: PeerFormat): Storage {
  return { linearBytes: (inputs, outputs) => ggmlBytes(format, inputs * outputs), kvElementBytes: 2 }
}

/**
 * Of one step of `sequences` sequences: attention, router and head once, every expert that some row wants once (the
 * expected number, rows choosing evenly and independently), and each sequence's keys and values.
 */
export function decodeStepBytes(shape: BenchShape, storage: Storage, sequences: number, context: number): number {
  const { hidden, experts, expertsPerToken, expertInner, layers, vocabulary } = shape
  const { linearBytes, kvElementBytes } = storage
  const attention = 4 * linearBytes(hidden, hidden)
  const router = hidden * experts * 4
  const awake = experts * (1 - (1 - expertsPerToken / experts) ** sequences)
  const expert = linearBytes(hidden, 2 * expertInner) + linearBytes(expertInner, hidden)
  const keysAndValues = sequences * context * 2 * hidden * kvElementBytes
  return layers * (attention + router + awake * expert + keysAndValues) + linearBytes(hidden, vocabulary)
}
