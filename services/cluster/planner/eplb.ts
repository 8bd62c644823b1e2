import { strict as assert } from 'node:assert'

export type EplbInput = {
  /** [layers][experts] load, in integers or 32-bit floats. */
  weights: readonly (readonly number[])[]
  /** Slots over all GPUs. */
  numReplicas: number
  numGroups: number
  numNodes: number
  numGpus: number
}

export type EplbPlacement = {
  /** [layers][slots] expert; slot s is on GPU floor(s / (numReplicas / numGpus)). */
  phy2log: number[][]
  /** [layers][experts] slots, by number of the copy. */
  log2phy: number[][][]
  /** [layers][experts] copies. */
  logcnt: number[][]
}

/**
 * DeepSeek's Expert Parallelism Load Balancer (the "EPLB" of their DeepSeek-V3 report), for comparison and as a policy.
 * Where the groups of experts can be divided over the nodes they are packed onto nodes first, then each node copies its
 * hot experts and packs the copies onto its GPUs; otherwise all GPUs count as one node.
 *
 * Results are exact to the bit of a slot: loads are 32-bit floats after every operation, equal loads keep their order.
 */
export function eplb(input: EplbInput): EplbPlacement {
  const { numReplicas, numGpus } = input
  const isHierarchical = input.numGroups % input.numNodes === 0
  const numGroups = isHierarchical ? input.numGroups : 1
  const numNodes = isHierarchical ? input.numNodes : 1
  const placement: EplbPlacement = { phy2log: [], log2phy: [], logcnt: [] }
  for (const weights of input.weights) {
    const experts = weights.length
    assert.equal(experts % numGroups, 0, 'groups are of one size')
    assert.equal(numReplicas % numGpus, 0, 'GPUs have the same number of slots')
    assert.equal(numGpus % numNodes, 0, 'nodes have the same number of GPUs')
    assert.ok(numReplicas >= experts, 'there is a slot for every expert')
    const loads = weights.map(Math.fround)
    const slots = expertsOfNodes(loads, numGroups, numNodes).flatMap((own) =>
      placeOnNode(own, loads, numReplicas / numNodes, numGpus / numNodes),
    )
    const log2phy = loads.map((): number[] => [])
    for (const [slot, { expert }] of slots.entries()) log2phy[expert]?.push(slot)
    for (const own of log2phy) own.sort((a, b) => (slots[a]?.copy ?? 0) - (slots[b]?.copy ?? 0))
    placement.phy2log.push(slots.map(({ expert }) => expert))
    placement.log2phy.push(log2phy)
    placement.logcnt.push(log2phy.map((own) => own.length))
  }
  return placement
}

/** Groups of consecutive experts, packed onto nodes: by node, its experts. */
function expertsOfNodes(loads: readonly number[], numGroups: number, numNodes: number): number[][] {
  const size = loads.length / numGroups
  const groupLoads = Array.from({ length: numGroups }, (_, group) =>
    loads.slice(group * size, (group + 1) * size).reduce((sum, load) => Math.fround(sum + load), 0),
  )
  return pack(groupLoads, numNodes).map((groups) =>
    groups.flatMap((group) => Array.from({ length: size }, (_, i) => group * size + i)),
  )
}

/** Copies for the highest load per copy, one after the other, then packed onto GPUs. In slot order. */
function placeOnNode(
  own: readonly number[],
  loads: readonly number[],
  slotCount: number,
  gpus: number,
): { expert: number; copy: number }[] {
  const counts = own.map(() => 1)
  const perCopy = own.map((expert) => loads[expert] ?? 0)
  const copies = own.map((_, index) => ({ index, copy: 0 }))
  while (copies.length < slotCount) {
    let hottest = 0
    for (let i = 1; i < own.length; i++) if ((perCopy[i] ?? 0) > (perCopy[hottest] ?? 0)) hottest = i
    const count = counts[hottest] ?? 1
    copies.push({ index: hottest, copy: count })
    counts[hottest] = count + 1
    perCopy[hottest] = Math.fround((loads[own[hottest] ?? 0] ?? 0) / (count + 1))
  }
  const copyLoads = copies.map(({ index }) => perCopy[index] ?? 0)
  return pack(copyLoads, gpus).flatMap((items) =>
    items.map((item) => ({ expert: own[copies[item]?.index ?? 0] ?? 0, copy: copies[item]?.copy ?? 0 })),
  )
}

/** Equally many items in each pack: the heaviest item first, to the lightest pack with room. By pack, in this order. */
function pack(loads: readonly number[], packCount: number): number[][] {
  const size = loads.length / packCount
  if (size === 1) return loads.map((_, item) => [item])
  const packs = Array.from({ length: packCount }, (): number[] => [])
  const packLoads = new Float32Array(packCount)
  const heaviestFirst = loads.map((_, item) => item).sort((a, b) => (loads[b] ?? 0) - (loads[a] ?? 0) || a - b)
  for (const item of heaviestFirst) {
    let lightest = -1
    for (const [i, items] of packs.entries()) {
      if (items.length < size && (lightest < 0 || (packLoads[i] ?? 0) < (packLoads[lightest] ?? 0))) lightest = i
    }
    packs[lightest]?.push(item)
    // Float32Array rounds on assignment.
    packLoads[lightest] = (packLoads[lightest] ?? 0) + (loads[item] ?? 0)
  }
  return packs
}
