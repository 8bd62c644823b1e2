import assert from 'node:assert/strict'
import { LatencyHistogram } from './latency.ts'

/**
 * When is a call late? When it takes much longer than its like did: calls of the same layer and of about as many rows,
 * on the typical node. A node that is always slow must not excuse itself by its own record, so of the nodes' p99s the
 * lower median counts.
 */
export type HedgeOptions = {
  /** No call is late before: timers are not finer than a few of them, and a collection of garbage takes as long. */
  floorMs: number
  /** Used until enough calls were seen. */
  coldMs: number
}

export const defaultHedgeOptions: HedgeOptions = { floorMs: 5, coldMs: 250 }

/** A call is hedged when it is slower than nearly all of its like; the factor keeps a p99 outlier from doubling load. */
function hedgeAfterMs(layerLatencyMsP99: number, floorMs: number): number {
  assert(Number.isFinite(layerLatencyMsP99))
  assert(layerLatencyMsP99 >= 0)
  return Math.max(floorMs, 3 * layerLatencyMsP99)
}

/** Calls with 1-4, 5-16, 17-64, 65-256 and more rows: time grows with rows, and prefill must not excuse decode. */
const rowClasses = 5
const rowsPerClass = 4
/** A p99 of fewer is their maximum, which one outlier ruins; still better than nothing from here on. */
const samplesMin = 32
/** Where no node and no layer has that many, so few must do: a maximum of some calls beats a constant. */
const samplesFew = 4
/** Limits are worked out again after so many calls of a class. */
const refreshEvery = 64

function rowClass(rows: number): number {
  return Math.min(rowClasses - 1, Math.max(0, Math.ceil(Math.log2(rows) / 2) - 1))
}

type NodeLatency = { all: LatencyHistogram; byLayer: Map<number, LatencyHistogram[]>; byClass: LatencyHistogram[] }

/** What was measured per node, layer and size of call, and the limits that follow from it. */
export class LatencyRecord {
  readonly #options: HedgeOptions
  readonly #nodes = new Map<string, NodeLatency>()
  /** layer × class → limit. */
  readonly #limits = new Map<number, { ms: number; callsLeft: number }>()
  #recorded = 0

  constructor(options: HedgeOptions) {
    this.#options = options
  }

  record(nodeId: string, layer: number, rows: number, ms: number): void {
    const node = this.#node(nodeId)
    const index = rowClass(rows)
    let layers = node.byLayer.get(layer)
    if (!layers) {
      layers = newClasses()
      node.byLayer.set(layer, layers)
    }
    layers[index]?.record(ms)
    node.byClass[index]?.record(ms)
    node.all.record(ms)
    this.#recorded += 1
  }

  /** After so many ms a call of a layer with so many rows is late. */
  limitMs(layer: number, rows: number): number {
    const index = rowClass(rows)
    const key = layer * rowClasses + index
    const known = this.#limits.get(key)
    if (known && known.callsLeft > 0) {
      known.callsLeft -= 1
      return known.ms
    }
    const ms = this.#workOut(layer, index)
    // While little is known, look again soon.
    const isEarly = ms === this.#options.coldMs || this.#recorded < rowClasses * refreshEvery
    this.#limits.set(key, { ms, callsLeft: isEarly ? 4 : refreshEvery })
    return ms
  }

  quantilesMs(nodeId: string): { p50: number; p99: number } {
    const all = this.#nodes.get(nodeId)?.all
    return { p50: all?.quantileMs(0.5) ?? 0, p99: all?.quantileMs(0.99) ?? 0 }
  }

  /** Forgets nodes that have left the cluster. */
  retain(nodeIds: ReadonlySet<string>): void {
    for (const nodeId of [...this.#nodes.keys()]) if (!nodeIds.has(nodeId)) this.#nodes.delete(nodeId)
    this.#limits.clear()
  }

  #workOut(layer: number, index: number): number {
    const { floorMs, coldMs } = this.#options
    const typical =
      this.#typicalP99(samplesMin, ({ byLayer }) => byLayer.get(layer)?.[index]) ??
      // Other layers do the same work with other weights.
      this.#typicalP99(samplesMin, ({ byClass }) => byClass[index]) ??
      this.#typicalP99(samplesFew, ({ byClass }) => byClass[index]) ??
      this.#fromOtherClasses(index)
    return typical === null ? coldMs : hedgeAfterMs(typical, floorMs)
  }

  /** Larger calls take longer, so their time is a bound; smaller ones take at most as much less as they are smaller. */
  #fromOtherClasses(index: number): number | null {
    for (let other = index + 1; other < rowClasses; other++) {
      const larger = this.#typicalP99(samplesFew, ({ byClass }) => byClass[other])
      if (larger !== null) return larger
    }
    for (let other = index - 1; other >= 0; other--) {
      const smaller = this.#typicalP99(samplesFew, ({ byClass }) => byClass[other])
      if (smaller !== null) return smaller * rowsPerClass ** (index - other)
    }
    return null
  }

  #typicalP99(samples: number, pick: (node: NodeLatency) => LatencyHistogram | undefined): number | null {
    const p99s: number[] = []
    for (const node of this.#nodes.values()) {
      const histogram = pick(node)
      if (histogram && histogram.samples >= samples) p99s.push(histogram.quantileMs(0.99))
    }
    p99s.sort((a, b) => a - b)
    return p99s[(p99s.length - 1) >> 1] ?? null
  }

  #node(nodeId: string): NodeLatency {
    let node = this.#nodes.get(nodeId)
    if (!node) {
      node = { all: new LatencyHistogram(), byLayer: new Map(), byClass: newClasses() }
      this.#nodes.set(nodeId, node)
    }
    return node
  }
}

function newClasses(): LatencyHistogram[] {
  return Array.from({ length: rowClasses }, () => new LatencyHistogram())
}
