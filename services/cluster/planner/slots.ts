export type SlotLayer = { experts: number; shardBytes: number; presentCopies: Int32Array }
export type SlotNode = { memoryBytes: number; ranks: number; zone: number }

/** How much above an even share of the useful copies a node may hold; the first that suffices is taken. */
const capFactors = [1.25, 1.5, 2, 3, 5, 10]

/**
 * By layer, [nodes]: how many copies a node may hold. The sum never exceeds its memory. Where memory is ample, no node
 * gets many more than its even share of what is useful, so that cold experts do not pile up on one.
 */
export function slotsOf(layers: readonly SlotLayer[], nodes: readonly SlotNode[], minReplicas: number): Int32Array[] {
  const byMemory = memorySlots(layers, nodes)
  const useful = layers.map((layer, index) =>
    usefulSlots(layer, nodes, byMemory[index] ?? new Int32Array(), minReplicas),
  )
  // What is held already need not go for the sake of the caps above, nor of the division of memory over the layers.
  for (const [node, { memoryBytes }] of nodes.entries()) {
    const wanted = layers.map(({ presentCopies }, i) => Math.max(useful[i]?.[node] ?? 0, presentCopies[node] ?? 0))
    const bytes = wanted.reduce((sum, count, i) => sum + count * (layers[i]?.shardBytes ?? 0), 0)
    if (bytes > memoryBytes) continue
    for (const [i, count] of wanted.entries()) useful[i]?.fill(count, node, node + 1)
  }
  return useful
}

export function usefulCopies(experts: number, nodes: number, minReplicas: number): number {
  return experts * minReplicas + nodes
}

/**
 * Divides each node's memory over the layers in proportion to their experts. What is left over after rounding down goes
 * to the layers that came off worst so far. Nodes are visited zone by zone, the small ones first: that keeps the sum of
 * each zone within one slot of its exact share, so that a cluster with just enough memory has just enough in each layer.
 */
function memorySlots(layers: readonly SlotLayer[], nodes: readonly SlotNode[]): Int32Array[] {
  const slots = layers.map(() => new Int32Array(nodes.length))
  const allBytes = layers.reduce((sum, { experts, shardBytes }) => sum + experts * shardBytes, 0)
  const shortfall = new Float64Array(layers.length)
  for (const node of visitingOrder(nodes)) {
    const memoryBytes = Math.max(0, nodes[node]?.memoryBytes ?? 0)
    if (memoryBytes >= allBytes) {
      for (const [i, { experts }] of layers.entries()) slots[i]?.fill(experts, node, node + 1)
      continue
    }
    let freeBytes = memoryBytes
    for (const [i, { experts, shardBytes }] of layers.entries()) {
      const exact = (memoryBytes / allBytes) * experts
      const count = Math.floor(exact)
      slots[i]?.fill(count, node, node + 1)
      freeBytes -= count * shardBytes
      shortfall[i] = (shortfall[i] ?? 0) + exact - count
    }
    const worstFirst = layers.map((_, i) => i)
    // A difference within rounding errors is none: the first layer comes first.
    worstFirst.sort((a, b) => {
      const difference = (shortfall[b] ?? 0) - (shortfall[a] ?? 0)
      return Math.abs(difference) < 1e-6 ? a - b : difference
    })
    for (const i of worstFirst) {
      const shardBytes = layers[i]?.shardBytes ?? 0
      const count = slots[i]?.[node] ?? 0
      if (shardBytes > freeBytes || count >= (layers[i]?.experts ?? 0)) continue
      slots[i]?.fill(count + 1, node, node + 1)
      freeBytes -= shardBytes
      shortfall[i] = (shortfall[i] ?? 0) - 1
    }
  }
  return slots
}

function visitingOrder(nodes: readonly SlotNode[]): number[] {
  const zoneBytes = new Map<number, number>()
  for (const { zone, memoryBytes } of nodes) zoneBytes.set(zone, (zoneBytes.get(zone) ?? 0) + memoryBytes)
  const bytesOfZone = (node: number) => zoneBytes.get(nodes[node]?.zone ?? 0) ?? 0
  return nodes
    .map((_, node) => node)
    .sort(
      (a, b) =>
        bytesOfZone(a) - bytesOfZone(b) ||
        (nodes[a]?.zone ?? 0) - (nodes[b]?.zone ?? 0) ||
        (nodes[a]?.memoryBytes ?? 0) - (nodes[b]?.memoryBytes ?? 0) ||
        a - b,
    )
}

function usefulSlots(layer: SlotLayer, nodes: readonly SlotNode[], most: Int32Array, minReplicas: number): Int32Array {
  const { experts } = layer
  const useful = usefulCopies(experts, nodes.length, minReplicas)
  const rankSum = nodes.reduce((sum, { ranks }) => sum + ranks, 0)
  const total = (slots: Int32Array) => slots.reduce((sum, count) => sum + count, 0)
  const inZones = (slots: Int32Array) => {
    const zones = new Map<number, number>()
    for (const [node, count] of slots.entries()) {
      const zone = nodes[node]?.zone ?? 0
      zones.set(zone, (zones.get(zone) ?? 0) + count)
    }
    return [...zones.values()].reduce((sum, count) => sum + Math.min(count, experts), 0)
  }
  const wantedTotal = Math.min(useful, total(most))
  const wantedInZones = Math.min(experts * minReplicas, inZones(most))
  for (const factor of capFactors) {
    const slots = most.map((count, node) =>
      Math.min(count, Math.ceil((factor * useful * (nodes[node]?.ranks ?? 1)) / rankSum) + 1),
    )
    if (total(slots) >= wantedTotal && inZones(slots) >= wantedInZones) return slots
  }
  return most.slice()
}
