import type { Clock, Timer } from './clock.ts'
import type { NodeHealth } from './node-health.ts'
import { createRowBuffer, type RowBuffer, type RowEncoding } from './rows.ts'
import { SideCalls } from './side-call.ts'
import type { ExpertTransport } from './transport.ts'

/** A failed probe is repeated after so long. */
const probeEveryMs = 100
/** More nodes than this are not probed at once; those beyond take their turn. */
const probesMax = 64

export type ProbesOptions = {
  readonly hidden: number
  readonly encoding: RowEncoding
  readonly clock: Clock
  readonly health: NodeHealth
  readonly transport: (nodeId: string) => ExpertTransport | undefined
  /** Some expert that the node holds, or null if it holds none. */
  readonly expertOf: (nodeId: string) => { layer: number; expert: number } | null
}

/**
 * Asks late nodes for one row of zeros, again and again, until they answer something. The first time at once: a node
 * that was only busy for a moment answers it right behind the call that was late. Nobody else waits for a probe, and it
 * needs no traffic: an idle cluster must see a node come back too.
 */
export class Probes {
  readonly #options: ProbesOptions
  readonly #side: SideCalls
  readonly #zeros: RowBuffer
  /** Null while a probe is under way. */
  readonly #pending = new Map<string, Timer | null>()
  #isClosed = false

  constructor(options: ProbesOptions) {
    const { encoding, hidden, clock } = options
    this.#options = options
    this.#side = new SideCalls(encoding, hidden, clock, probesMax)
    this.#zeros = createRowBuffer(encoding, hidden, 1)
  }

  /** The node became late. */
  start(nodeId: string): void {
    if (!this.#isClosed && !this.#pending.has(nodeId)) this.#probe(nodeId)
  }

  close(): void {
    this.#isClosed = true
    for (const timer of this.#pending.values()) timer?.cancel()
    this.#pending.clear()
    this.#side.close()
  }

  #probe(nodeId: string): void {
    const { health, transport, expertOf } = this.#options
    this.#pending.delete(nodeId)
    if (this.#isClosed || !health.isLate(nodeId)) return
    const target = expertOf(nodeId)
    const way = transport(nodeId)
    if (!target || !way || this.#side.isFull) {
      this.#again(nodeId)
      return
    }
    this.#pending.set(nodeId, null)
    this.#side.call(way, { ...target, rows: this.#zeros, row: 0 }).then(
      () => {
        this.#pending.delete(nodeId)
        health.markAnswered(nodeId, 0)
      },
      // It is late already; asking again is all there is to do.
      () => this.#again(nodeId),
    )
  }

  #again(nodeId: string): void {
    this.#pending.delete(nodeId)
    if (this.#isClosed || !this.#options.health.isLate(nodeId)) return
    this.#pending.set(
      nodeId,
      this.#options.clock.after(probeEveryMs, () => this.#probe(nodeId)),
    )
  }
}
