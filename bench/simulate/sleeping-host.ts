import { MoeshError } from '../../services/config/errors.ts'
import type { LatencyHistogram } from '../../services/dispatch/latency.ts'
import type { ExpertCall, ExpertReply } from '../../services/dispatch/transport.ts'
import type { ExpertHost } from '../../services/expert/host.ts'
import { callMs, type ExpertCost } from './cost.ts'
import { marker } from './model.ts'
import { type Sleeper, systemMs } from './sleeper.ts'

/** What a node's server needs of its host; there is nothing to load. */
type SimulatedHost = Pick<ExpertHost, 'ranks' | 'call' | 'computedMs'>

export type SleepingHostOptions = {
  cost: ExpertCost
  sleeper: Pick<Sleeper, 'until'>
  hidden: number
  held: ReadonlyMap<number, ReadonlySet<number>>
  /** How long after its time each answer was given. */
  late: LatencyHistogram
}

/**
 * An expert node's host that sleeps as long as computing would take. It has one rank, which does one call at a time: a
 * call that comes while it is busy begins when the one before would have ended, not when that one's alarm was heard, so
 * that late alarms do not add up. Every output row is `marker`, then zeros.
 */
export class SleepingHost implements SimulatedHost {
  readonly ranks = 1
  readonly #options: SleepingHostOptions
  #freeMs = 0
  #computedMs = 0

  constructor(options: SleepingHostOptions) {
    this.#options = options
  }

  computedMs(): number {
    return this.#computedMs
  }

  async call(call: ExpertCall): Promise<ExpertReply> {
    const { cost, sleeper, held, late } = this.#options
    for (const expert of call.experts) {
      if (held.get(call.layer)?.has(expert)) continue
      throw new MoeshError('EXPERT_NOT_HELD', `expert ${expert} of layer ${call.layer} is not held here`)
    }
    const computeMs = callMs(cost, call.experts.length, call.rowIndices.length)
    const dueMs = Math.max(this.#freeMs, systemMs()) + computeMs
    this.#freeMs = dueMs
    const nowMs = await sleeper.until(dueMs)
    late.record(nowMs - dueMs)
    this.#computedMs += computeMs
    this.#mark(call)
    return { computeMs }
  }

  /** Nobody else writes to the buffers of a node: what was zero stays it. */
  #mark({ layer, experts, counts, outputs, outputStart }: ExpertCall): void {
    const { hidden } = this.#options
    let row = outputStart
    for (const [index, expert] of experts.entries()) {
      const end = row + (counts[index] ?? 0)
      for (; row < end; row++) outputs.data[row * hidden] = marker(layer, expert)
    }
  }
}
