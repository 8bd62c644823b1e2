import { existsSync, readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { z } from 'zod'
import type { PlanInput, PlannerLayer, PlannerNode } from '../../services/cluster/planner/plan.ts'

const caseSchema = z.object({
  name: z.string(),
  numReplicas: z.number(),
  numGroups: z.number(),
  numNodes: z.number(),
  numGpus: z.number(),
  weights: z.array(z.array(z.number())),
  phy2log: z.array(z.array(z.number())),
  meanBalancedness: z.number(),
})
export type PublishedCase = z.infer<typeof caseSchema>

/** The published example of EPLB and of FlashLB, for where the whole file is not at hand. */
const builtIn: PublishedCase[] = [
  {
    name: 'readme',
    numReplicas: 16,
    numGroups: 4,
    numNodes: 2,
    numGpus: 8,
    weights: [
      [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
      [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    phy2log: [
      [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
      [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ],
    meanBalancedness: 0.816369,
  },
  {
    name: 'flashlb',
    numReplicas: 16,
    numGroups: 1,
    numNodes: 1,
    numGpus: 8,
    weights: [[600, 560, 120, 120, 20, 10, 10, 10]],
    phy2log: [[0, 1, 2, 1, 3, 1, 0, 4, 0, 5, 0, 6, 0, 7, 1, 1]],
    meanBalancedness: 0.78125,
  },
]

const file = resolve(import.meta.dirname, '..', '..', '..', 'shared', 'reference', 'eplb.json')

/** Whether `../shared/reference/eplb.json` is there; without it only the built-in cases run. */
export const hasPublishedFile = existsSync(file)

export const publishedCases: PublishedCase[] = hasPublishedFile
  ? z.object({ cases: z.array(caseSchema) }).parse(JSON.parse(readFileSync(file, 'utf8'))).cases
  : builtIn

export const shardBytes = 1000

/** GPUs of a published case as nodes with just the memory for its slots. */
export function inputOf({ weights, numReplicas, numGpus }: PublishedCase, minReplicas: number): PlanInput {
  const slotsPerNode = (numReplicas / numGpus) * weights.length
  return {
    layers: weights.map((loads, layer) => layerOf(layer, loads)),
    nodes: Array.from({ length: numGpus }, (_, i) => nodeOf(`n${i}`, slotsPerNode)),
    present: [],
    minReplicas,
  }
}

export function layerOf(layer: number, loads: Iterable<number>): PlannerLayer {
  const rates = Float64Array.from(loads)
  return { layer, experts: rates.length, shardBytes, loads: rates }
}

export function nodeOf(id: string, slots: number, zone = '', ranks = 1): PlannerNode {
  return { id, zone, memoryBytes: slots * shardBytes, ranks }
}

/** Numbers in [0, 1), always the same ones. */
export function sequence(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

/** Zipf loads in a random order. */
export function zipfLoads(experts: number, exponent: number, random: () => number): number[] {
  return Array.from({ length: experts }, (_, i) => ({ load: 10_000 / (i + 1) ** exponent, at: random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ load }) => load)
}

/** Each load off by up to 10 % either way. */
export function drifted(input: PlanInput, random: () => number): PlanInput {
  return {
    ...input,
    layers: input.layers.map((layer) => ({
      ...layer,
      loads: layer.loads.map((load) => load * (0.9 + 0.2 * random())),
    })),
  }
}
