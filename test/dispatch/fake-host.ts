import { MoeshError } from '../../services/config/errors.ts'
import { hasScale, type RowEncoding, rowBytes } from '../../services/dispatch/rows.ts'
import type { ExpertCall, ExpertReply } from '../../services/dispatch/transport.ts'
import type { ExpertHost, ShardId, ShardSource } from '../../services/expert/host.ts'

/** What the fake experts make of a row: exact in f32, and different for every byte and scale that got lost. */
export function fakeOutput(layer: number, expert: number, sum: number, scale: number, column: number): number {
  return sum * 16 + scale + layer * 0.25 + expert * 2 ** 20 + column
}

/** Of a row's bytes, in their order. */
export function checksum(row: Uint8Array): number {
  let sum = 0
  for (let i = 0; i < row.length; i++) sum = (sum * 3 + (row[i] ?? 0)) % 65521
  return sum
}

/** A host whose experts need no weights; the test decides when a call is computed. */
export class FakeHost implements ExpertHost {
  readonly ranks = 2
  readonly failed = new Promise<Error>(() => {})
  readonly encoding: RowEncoding
  readonly hidden: number
  isHolding = false
  failure: MoeshError | null = null
  calls = 0
  computed = 0
  readonly #held = new Map<number, Set<number>>()
  readonly #open: (() => void)[] = []

  constructor(encoding: RowEncoding, hidden: number) {
    this.encoding = encoding
    this.hidden = hidden
  }

  async load(shards: readonly ShardSource[] | readonly ShardId[]): Promise<void> {
    for (const { layer, expert } of shards) {
      const experts = this.#held.get(layer) ?? new Set()
      experts.add(expert)
      this.#held.set(layer, experts)
    }
  }

  async unload(shards: readonly ShardId[]): Promise<void> {
    for (const { layer, expert } of shards) this.#held.get(layer)?.delete(expert)
  }

  held(): ReadonlyMap<number, ReadonlySet<number>> {
    return this.#held
  }

  usedBytes(): number {
    return [...this.#held.values()].reduce((sum, experts) => sum + experts.size * 1000, 0)
  }

  /** Calls that wait for `release`. */
  get waiting(): number {
    return this.#open.length
  }

  release(which: 'first' | 'last' | 'all' = 'all'): void {
    if (which === 'first') this.#open.shift()?.()
    else if (which === 'last') this.#open.pop()?.()
    else for (const go of this.#open.splice(0)) go()
  }

  async call(call: ExpertCall): Promise<ExpertReply> {
    this.calls += 1
    for (const expert of call.experts) {
      if (!this.#held.get(call.layer)?.has(expert)) {
        throw new MoeshError('EXPERT_NOT_HELD', `expert ${expert} of layer ${call.layer} is not held here`)
      }
    }
    if (this.isHolding) await new Promise<void>((go) => this.#open.push(go))
    else await new Promise(setImmediate)
    if (this.failure) throw this.failure
    this.#compute(call)
    this.computed += 1
    return { computeMs: 1.5 }
  }

  computedMs(): number {
    return this.computed * 1.5
  }

  runtimeMs(): number {
    return this.computed
  }

  async close(): Promise<void> {}

  #compute(call: ExpertCall): void {
    const bytes = rowBytes(this.encoding, this.hidden)
    let at = 0
    call.experts.forEach((expert, index) => {
      for (let i = 0; i < (call.counts[index] ?? 0); i++) {
        const row = call.rowIndices[at] ?? -1
        const sum = checksum(call.rows.data.subarray(row * bytes, (row + 1) * bytes))
        const scale = hasScale(this.encoding) ? (call.rows.scales[row] ?? Number.NaN) : 0
        for (let column = 0; column < this.hidden; column++) {
          const value = fakeOutput(call.layer, expert, sum, scale, column)
          call.outputs.data[(call.outputStart + at) * this.hidden + column] = value
        }
        at += 1
      }
    })
  }
}
