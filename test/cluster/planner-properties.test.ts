import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { weightUnit } from '../../services/cluster/placement.ts'
import { type Plan, type PlanInput, type PlannerNode, planPlacement } from '../../services/cluster/planner/plan.ts'
import { layerOf, nodeOf, shardBytes } from './planner-cases.ts'

const options = { seed: 20_240_611, numRuns: 400 }

const load = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: 1000 }) },
  { weight: 1, arbitrary: fc.constant(0) },
  { weight: 1, arbitrary: fc.integer({ min: 10_000, max: 100_000 }) },
)

/** Any cluster, with too little memory or too few nodes as well. Layers have one number of experts. */
const anyInput = fc
  .record({
    layers: fc.integer({ min: 1, max: 4 }),
    experts: fc.integer({ min: 1, max: 12 }),
    zones: fc.integer({ min: 1, max: 3 }),
    minReplicas: fc.integer({ min: 1, max: 3 }),
  })
  .chain(({ layers, experts, zones, minReplicas }) =>
    fc.record({
      layers: fc
        .array(fc.array(load, { minLength: experts, maxLength: experts }), { minLength: layers, maxLength: layers })
        .map((all) => all.map((loads, layer) => layerOf(layer, loads))),
      nodes: fc
        .array(
          fc.record({
            slots: fc.integer({ min: 0, max: layers * experts + 3 }),
            zone: fc.integer({ min: 0, max: zones - 1 }),
            ranks: fc.integer({ min: 1, max: 4 }),
          }),
          { maxLength: 7 },
        )
        .map((all) => all.map(({ slots, zone, ranks }, i) => nodeOf(`n${i}`, slots, `z${zone}`, ranks))),
      present: fc.constant([]),
      minReplicas: fc.constant(minReplicas),
    }),
  )

/** The same with copies here and there, some of them more than memory allows now. */
const anyInputWithPresent: fc.Arbitrary<PlanInput> = anyInput.chain((input) =>
  fc
    .array(
      fc.record({
        layer: fc.integer({ min: 0, max: input.layers.length - 1 }),
        expert: fc.integer({ min: 0, max: (input.layers[0]?.experts ?? 1) - 1 }),
        node: fc.integer({ min: 0, max: 7 }).map((i) => `n${i}`),
      }),
      { maxLength: 80 },
    )
    .map((present) => ({ ...input, present })),
)

const anyOfBoth = fc.oneof(anyInput, anyInputWithPresent)

const slotsOf = ({ memoryBytes }: PlannerNode) => Math.floor(memoryBytes / shardBytes)

/** n items in m different bins each, of which bin b has room for c_b: possible just when Σ min(c_b, n) ≥ m·n. */
function copiesPossible(rooms: readonly number[], { layers, minReplicas }: PlanInput): number {
  const shards = layers.reduce((sum, { experts }) => sum + experts, 0)
  const usable = rooms.reduce((sum, room) => sum + Math.min(room, shards), 0)
  return Math.min(minReplicas, Math.floor(usable / shards))
}

function zoneRooms({ nodes }: PlanInput): number[] {
  const rooms = new Map<string, number>()
  for (const node of nodes) rooms.set(node.zone, (rooms.get(node.zone) ?? 0) + slotsOf(node))
  return [...rooms.values()]
}

function homesByShard(plan: Plan, { layers }: PlanInput): string[][] {
  const homes = new Map(
    layers.flatMap(({ layer, experts }) =>
      Array.from({ length: experts }, (_, expert): [string, string[]] => [`${layer}/${expert}`, []]),
    ),
  )
  for (const { layer, expert, node } of plan.copies) homes.get(`${layer}/${expert}`)?.push(node)
  return [...homes.values()]
}

const countOf = (plan: Plan, rule: string) => plan.unmet.find((unmet) => unmet.rule === rule)?.count ?? 0

describe('for any cluster', () => {
  test('memory is never exceeded, no node holds an expert twice, weights add up', () => {
    fc.assert(
      fc.property(anyOfBoth, (input) => {
        const plan = planPlacement(input)
        for (const node of input.nodes) {
          expect(plan.copies.filter((copy) => copy.node === node.id).length).toBeLessThanOrEqual(slotsOf(node))
        }
        const ids = new Set(input.nodes.map(({ id }) => id))
        const weights = new Map<string, number>()
        for (const { layer, expert, node, weight } of plan.copies) {
          expect(ids).toContain(node)
          expect(Number.isInteger(weight)).toBe(true)
          weights.set(`${layer}/${expert}`, (weights.get(`${layer}/${expert}`) ?? 0) + weight)
        }
        for (const sum of weights.values()) expect(sum).toBe(weightUnit)
        for (const homes of homesByShard(plan, input)) expect(new Set(homes).size).toBe(homes.length)
      }),
      options,
    )
  })

  test('every expert has the copies that memory allows, and what it does not allow is reported', () => {
    fc.assert(
      fc.property(anyOfBoth, (input) => {
        const plan = planPlacement(input)
        const homes = homesByShard(plan, input)
        const possible = copiesPossible(input.nodes.map(slotsOf), input)
        for (const nodes of homes) expect(nodes.length).toBeGreaterThanOrEqual(possible)
        expect(countOf(plan, 'coverage')).toBe(homes.filter((nodes) => nodes.length === 0).length)
        expect(countOf(plan, 'replicas')).toBe(homes.filter((nodes) => nodes.length < input.minReplicas).length)
      }),
      options,
    )
  })

  test('copies are in different zones where memory allows it, else it is reported', () => {
    fc.assert(
      fc.property(anyOfBoth, (input) => {
        const plan = planPlacement(input)
        const zoneOf = new Map(input.nodes.map(({ id, zone }) => [id, zone]))
        const zones = homesByShard(plan, input).map((homes) => ({
          homes: homes.length,
          zones: new Set(homes.map((id) => zoneOf.get(id))).size,
        }))
        const rooms = zoneRooms(input)
        // As many zones as replicas, and room for all in them: then the zones alone decide.
        const isPossible = rooms.length >= input.minReplicas && copiesPossible(rooms, input) === input.minReplicas
        if (isPossible) for (const entry of zones) expect(entry.zones).toBeGreaterThanOrEqual(input.minReplicas)
        const wanted = Math.min(input.minReplicas, rooms.length)
        const tooClose = zones.filter((entry) => entry.homes > 0 && entry.zones < Math.min(wanted, entry.homes))
        expect(countOf(plan, 'zones')).toBe(tooClose.length)
      }),
      options,
    )
  })

  test('the same input gives the same plan, in whatever order nodes report what they hold', () => {
    fc.assert(
      fc.property(anyOfBoth, (input) => {
        const plan = planPlacement(input)
        expect(planPlacement(structuredClone(input))).toEqual(plan)
        expect(planPlacement({ ...input, present: [...input.present].reverse() })).toEqual(plan)
      }),
      options,
    )
  })

  test('moves lead from what is to what shall be', () => {
    fc.assert(
      fc.property(anyOfBoth, (input) => {
        const plan = planPlacement(input)
        const ids = new Set(input.nodes.map(({ id }) => id))
        const key = (layer: number, expert: number, node: string) => `${layer}/${expert}/${node}`
        const held = new Set(
          input.present.filter(({ node }) => ids.has(node)).map((at) => key(at.layer, at.expert, at.node)),
        )
        for (const { layer, expert, from, to, why } of plan.moves) {
          expect(why).not.toBe('')
          if (from !== '') expect(held.delete(key(layer, expert, from))).toBe(true)
          if (to !== '') expect(held.has(key(layer, expert, to))).toBe(false)
          if (to !== '') held.add(key(layer, expert, to))
        }
        expect([...held].sort()).toEqual(plan.copies.map((at) => key(at.layer, at.expert, at.node)).sort())
      }),
      options,
    )
  })

  test('a plan that is carried out is kept', () => {
    fc.assert(
      fc.property(anyInput, (input) => {
        const { copies, unmet } = planPlacement(input)
        const again = planPlacement({ ...input, present: copies, movesMax: 0 })
        // A node that was left empty counts as joining: it may get something. Where rules can't be met, another try may
        // come closer.
        const isEmpty = input.nodes.some(({ id }) => !copies.some(({ node }) => node === id))
        if (!isEmpty && unmet.length === 0) expect(again.moves).toEqual([])
      }),
      options,
    )
  })

  test('a lost node’s experts are covered again by the others', () => {
    fc.assert(
      fc.property(anyInput, fc.nat(6), (input, index) => {
        const { copies } = planPlacement(input)
        const nodes = input.nodes.filter((_, i) => i !== index % Math.max(1, input.nodes.length))
        const later = { ...input, nodes, present: copies }
        const possible = copiesPossible(nodes.map(slotsOf), later)
        for (const homes of homesByShard(planPlacement(later), later)) {
          expect(homes.length).toBeGreaterThanOrEqual(possible)
        }
      }),
      options,
    )
  })

  test('an empty node that joins is used as a plan from nothing would use it', () => {
    fc.assert(
      fc.property(anyInput, (input) => {
        const slots = input.layers.reduce((sum, { experts }) => sum + experts, 0)
        const ample = input.nodes.map((node) => ({ ...node, memoryBytes: slots * shardBytes }))
        if (ample.length === 0) return
        const { copies } = planPlacement({ ...input, nodes: ample })
        const joined = [...ample, nodeOf('new', slots, 'z0')]
        const plan = planPlacement({ ...input, nodes: joined, present: copies })
        const anew = planPlacement({ ...input, nodes: joined })
        // Where a few heavy experts decide the balance, another node may be of no use.
        const isUsed = plan.copies.some(({ node }) => node === 'new')
        if (!isUsed) expect(plan.balancedness).toBeGreaterThan(anew.balancedness - 0.01)
        expect(plan.balancedness).toBeGreaterThan(anew.balancedness - 0.1)
      }),
      options,
    )
  })
})
