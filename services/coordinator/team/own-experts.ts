import { MoeshError } from '../../config/errors.ts'
import type { ShardSource } from '../../expert/host.ts'
import { RankExperts } from '../../expert/rank-experts.ts'
import { type ModelSpec, moeLayers } from '../../model/spec.ts'
import type { ShareSetup } from './layer-sessions.ts'
import type { StepBuffers } from './layout.ts'

/**
 * Each expert of a layer to one of the ranks, in turn: rows of a layer meet all of them at once. Errors: PACK_INVALID
 * where an expert is missing or there twice: nobody would notice later whose outputs are read.
 */
export function shareExperts(spec: ModelSpec, shards: readonly ShardSource[], ranks: number): ShardSource[][] {
  const named = new Set(shards.map(({ layer, expert }) => `${layer}/${expert}`))
  const wanted = moeLayers(spec).flatMap(({ layer, ffn }) =>
    Array.from({ length: ffn.experts }, (_, e) => `${layer}/${e}`),
  )
  if (named.size !== shards.length || wanted.some((name) => !named.has(name))) {
    throw new MoeshError('PACK_INVALID', 'experts are missing or listed twice', 'pack again')
  }
  const next = new Map<number, number>()
  const shares = Array.from({ length: ranks }, (): ShardSource[] => [])
  for (const shard of [...shards].sort((a, b) => a.expert - b.expert)) {
    const turn = next.get(shard.layer) ?? 0
    next.set(shard.layer, turn + 1)
    shares[turn % ranks]?.push(shard)
  }
  return shares
}

/**
 * A thread's share of the experts, where the team computes them itself: no other thread has to be woken for a layer.
 * Every thread groups the rows of all experts alike, and computes those of its own.
 */
export class OwnExperts {
  readonly #experts: RankExperts
  readonly #buffers: StepBuffers
  readonly #writesPlaces: boolean
  /** [experts] of the widest layer: rows of each, and where those of each begin. */
  readonly #rowsOf: Int32Array
  readonly #startOf: Int32Array
  /** The call: experts that have rows, their counts, and all rows by expert. */
  readonly #ids: Int32Array
  readonly #counts: Int32Array
  readonly #rowIndices: Int32Array

  constructor(setup: ShareSetup & { buffers: StepBuffers }, shards: readonly ShardSource[]) {
    const { spec, format, session, thread, buffers } = setup
    const widest = Math.max(0, ...moeLayers(spec).map(({ ffn }) => ffn.experts))
    this.#experts = new RankExperts(spec, format, session)
    this.#buffers = buffers
    this.#writesPlaces = thread === 0
    this.#rowsOf = new Int32Array(widest)
    this.#startOf = new Int32Array(widest)
    this.#ids = new Int32Array(widest)
    this.#counts = new Int32Array(widest)
    this.#rowIndices = new Int32Array(buffers.outputRows.length)
    const byLayer = new Map<number, ShardSource[]>()
    for (const shard of shards) byLayer.set(shard.layer, [...(byLayer.get(shard.layer) ?? []), shard])
    for (const [layer, sources] of byLayer) this.#experts.load(layer, sources)
  }

  /** The outputs of this thread's experts for the routed rows of a step, and (one thread) where all of them lie. */
  compute(layer: number, rows: number, expertsPerToken: number): void {
    const { expertIds, outputRows, rows: encoded, outputs, expertRows } = this.#buffers
    const pairs = rows * expertsPerToken
    this.#rowsOf.fill(0)
    for (let pair = 0; pair < pairs; pair++) {
      const expert = expertIds[pair] ?? 0
      this.#rowsOf[expert] = (this.#rowsOf[expert] ?? 0) + 1
    }
    let active = 0
    let start = 0
    for (let expert = 0; expert < this.#rowsOf.length; expert++) {
      const count = this.#rowsOf[expert] ?? 0
      this.#startOf[expert] = start
      start += count
      if (count === 0) continue
      this.#ids[active] = expert
      this.#counts[active++] = count
      if (this.#writesPlaces) {
        const at = layer * this.#rowsOf.length + expert
        expertRows[at] = (expertRows[at] ?? 0) + count
      }
    }
    for (let pair = 0; pair < pairs; pair++) {
      const expert = expertIds[pair] ?? 0
      const place = this.#startOf[expert] ?? 0
      this.#startOf[expert] = place + 1
      this.#rowIndices[place] = Math.floor(pair / expertsPerToken)
      if (this.#writesPlaces) outputRows[pair] = place
    }
    this.#experts.compute({
      layer,
      experts: this.#ids.subarray(0, active),
      counts: this.#counts.subarray(0, active),
      rowIndices: this.#rowIndices.subarray(0, pairs),
      rows: encoded,
      outputs,
      outputStart: 0,
    })
  }

  close(): void {
    this.#experts.dispose()
  }
}
