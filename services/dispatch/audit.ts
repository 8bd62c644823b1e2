import { asMoeshError, MoeshError } from '../config/errors.ts'
import { createRowBuffer, hasScale, type RowBuffer, type RowEncoding, rowBytes } from './rows.ts'
import type { SideCalls } from './side-call.ts'
import type { ExpertTransport } from './transport.ts'

/**
 * Faulty memory and processors compute wrong rows without saying so. Since equal rows give equal bits on every copy, a
 * sample of rows is computed once more elsewhere and compared bit for bit; when two differ, a third copy or the
 * coordinator's own computation decides.
 */
export type AuditFinding = {
  readonly layer: number
  readonly expert: number
  /** Who computed the row, `coordinator` for the own computation. */
  readonly nodes: readonly string[]
  /** Outvoted: one node, or all where no two agreed. */
  readonly suspects: readonly string[]
}

export type AuditOptions = {
  /** Share of the (row, expert) pairs that is computed twice; 0 turns it off. */
  readonly share: number
  readonly encoding: RowEncoding
  readonly hidden: number
  /** 0 ≤ x < 1 */
  readonly random: () => number
  readonly side: SideCalls
  /** Other copies that answer, best first. */
  readonly copies: (layer: number, expert: number) => string[]
  readonly transport: (nodeId: string) => ExpertTransport | undefined
  /** The coordinator's own computation, if it holds the expert; its word is final. */
  readonly reference: (layer: number, expert: number) => ExpertTransport | undefined
  /** Computes itself where two copies differ and no third answers; null if it cannot. */
  readonly judge: (layer: number, expert: number) => Promise<ExpertTransport | null>
  readonly found: (finding: AuditFinding) => void
}

const ownName = 'coordinator'

type Sample = { layer: number; expert: number; rows: RowBuffer; row: number; nodeId: string; output: Float32Array }

export class Audit {
  readonly #options: AuditOptions
  #pairsToNext: number
  #compared = 0
  #differing = 0

  constructor(options: AuditOptions) {
    if (!(options.share >= 0 && options.share <= 1)) {
      throw new MoeshError('INVALID_ARGUMENT', `audit share ${options.share}`, 'it is between 0 and 1')
    }
    this.#options = options
    this.#pairsToNext = this.#draw()
  }

  counters(): { compared: number; differing: number } {
    return { compared: this.#compared, differing: this.#differing }
  }

  /** Index of the pair to be audited among the next `pairs`, or null; the first that the draw hits. */
  next(pairs: number): number | null {
    if (this.#pairsToNext >= pairs) {
      this.#pairsToNext -= pairs
      return null
    }
    const pair = this.#pairsToNext
    this.#pairsToNext = this.#draw()
    return this.#options.side.isFull ? null : pair
  }

  /** Copies what it needs before it returns; the verdict comes later. */
  check(
    layer: number,
    expert: number,
    rows: RowBuffer,
    row: number,
    nodeId: string,
    output: Float32Array,
  ): Promise<void> {
    const { encoding, hidden } = this.#options
    const own = createRowBuffer(encoding, hidden, 1)
    const bytes = rowBytes(encoding, hidden)
    own.data.set(rows.data.subarray(row * bytes, (row + 1) * bytes))
    if (hasScale(encoding)) own.scales[0] = rows.scales[row] ?? 0
    return this.#compare({ layer, expert, rows: own, row: 0, nodeId, output: Float32Array.from(output) })
  }

  async #compare(sample: Sample): Promise<void> {
    const { layer, expert, nodeId } = sample
    const others = this.#options.copies(layer, expert).filter((other) => other !== nodeId)
    const second = await this.#ask(sample, others)
    if (second === null) return
    this.#compared += 1
    if (sameBits(sample.output, second.output)) return
    this.#differing += 1
    const { found } = this.#options
    // The own computation decides; it is asked as the second where no other copy lives, and as the third before others.
    if (second.nodeId === ownName) return found({ layer, expert, nodes: [nodeId, ownName], suspects: [nodeId] })
    const rest = others.filter((other) => other !== second.nodeId)
    const third = (await this.#ask(sample, rest, true)) ?? (await this.#judge(sample))
    const outputs = [{ nodeId, output: sample.output }, second, ...(third ? [third] : [])]
    const outvoted = outputs.filter(
      (one) => one.nodeId !== ownName && !outputs.some((other) => other !== one && sameBits(one.output, other.output)),
    )
    found({ layer, expert, nodes: outputs.map((one) => one.nodeId), suspects: outvoted.map((one) => one.nodeId) })
  }

  async #ask(
    sample: Sample,
    nodeIds: string[],
    ownFirst = false,
  ): Promise<{ nodeId: string; output: Float32Array } | null> {
    const { side, transport, reference } = this.#options
    const own = { nodeId: ownName, transport: reference(sample.layer, sample.expert) }
    const nodes = nodeIds.map((nodeId) => ({ nodeId, transport: transport(nodeId) }))
    for (const asked of ownFirst ? [own, ...nodes] : [...nodes, own]) {
      if (!asked.transport || side.isFull) continue
      try {
        return { nodeId: asked.nodeId, output: await side.call(asked.transport, sample) }
      } catch (thrown) {
        // Who does not answer has no vote: that it is lost or late is seen by the calls of the token loop.
        asMoeshError(thrown)
      }
    }
    return null
  }

  async #judge(sample: Sample): Promise<{ nodeId: string; output: Float32Array } | null> {
    const { side, judge } = this.#options
    try {
      const transport = await judge(sample.layer, sample.expert)
      return transport && !side.isFull ? { nodeId: ownName, output: await side.call(transport, sample) } : null
    } catch (thrown) {
      // Then nobody knows who is right, which is told as that.
      asMoeshError(thrown)
      return null
    }
  }

  /** Gaps between hits of independent draws are geometric. */
  #draw(): number {
    const { share, random } = this.#options
    if (share === 0) return Infinity
    if (share === 1) return 0
    return Math.floor(Math.log(1 - random()) / Math.log(1 - share))
  }
}

function sameBits(a: Float32Array, b: Float32Array): boolean {
  return Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength))
}
