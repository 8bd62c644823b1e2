import { describe, expect, test } from 'vitest'
import { weightUnit } from '../../services/cluster/placement.ts'
import { balancednessOf, type Plan, type PlanInput, planPlacement } from '../../services/cluster/planner/plan.ts'
import { drifted, inputOf, layerOf, nodeOf, publishedCases, sequence, zipfLoads } from './planner-cases.ts'

const loadsOf = (plan: Plan, { layers, nodes }: PlanInput, layer: number) => {
  const rates = layers.find((entry) => entry.layer === layer)?.loads
  const loads = new Map(nodes.map(({ id }) => [id, 0]))
  for (const copy of plan.copies) {
    if (copy.layer !== layer) continue
    const rows = ((rates?.[copy.expert] ?? 0) * copy.weight) / weightUnit
    loads.set(copy.node, (loads.get(copy.node) ?? 0) + rows)
  }
  return loads
}

const homesOf = (plan: Plan) => {
  const homes = new Map<string, string[]>()
  for (const { layer, expert, node } of plan.copies) {
    const key = `${layer}/${expert}`
    homes.set(key, [...(homes.get(key) ?? []), node])
  }
  return homes
}

const named = (name: string) => publishedCases.filter((published) => published.name === name)

describe('published cases', () => {
  test.each(publishedCases)('at least as balanced as by EPLB: $name', (published) => {
    const plan = planPlacement(inputOf(published, 1))
    expect(plan.unmet).toEqual([])
    expect(plan.balancedness).toBeGreaterThanOrEqual(published.meanBalancedness)
  })

  test.each(named('flashlb'))('the busiest node of flashlb has 181.25 rows/s', (published) => {
    const input = inputOf(published, 1)
    const plan = planPlacement(input)
    expect(Math.max(...loadsOf(plan, input, 0).values())).toBeCloseTo(181.25, 1)
    expect(plan.copies.length).toBeLessThanOrEqual(15)
  })

  test.each(named('zipf-coverage'))(
    'with 512 slots every expert has two homes, and the balance is EPLB’s',
    (published) => {
      const plan = planPlacement(inputOf(published, 2))
      expect(plan.unmet).toEqual([])
      expect(plan.copies.length).toBe(512)
      expect(Math.min(...[...homesOf(plan).values()].map((homes) => new Set(homes).size))).toBe(2)
      expect(plan.balancedness).toBeGreaterThanOrEqual(published.meanBalancedness)
    },
  )

  test.each(named('zipf-coverage-steep'))(
    'two homes come before balance, which is then as good as it can be',
    (published) => {
      const plan = planPlacement(inputOf(published, 2))
      expect(plan.unmet).toEqual([])
      // The hottest has half of its 10,450 rows in each home, the mean is 1,000.
      expect(plan.balancedness).toBeGreaterThan(0.98 * (1000 / 5225))
      expect(plan.balancedness).toBeLessThanOrEqual(1000 / 5225 + 1e-9)
    },
  )
})

describe('few moves', () => {
  // With less, 5 % of the copies is one or none.
  const large = publishedCases.filter(({ numReplicas, weights }) => numReplicas * weights.length > 1000)

  test.skipIf(large.length === 0).each(large)(
    'loads that drift by 10 % move at most 5 % of the copies: $name',
    (published) => {
      const input = inputOf(published, 1)
      const { copies } = planPlacement(input)
      const later = drifted(input, sequence(7))
      const plan = planPlacement({ ...later, present: copies })
      expect(plan.moves.length).toBeLessThanOrEqual(0.05 * copies.length)
      expect(plan.balancedness).toBeGreaterThanOrEqual(planPlacement(later).balancedness - 0.02)
    },
  )

  const tables = [
    { name: 'one copy each', minReplicas: 1, exponent: 0.8, slots: 11 },
    { name: 'two copies each', minReplicas: 2, exponent: 0.8, slots: 20 },
    { name: 'two copies each, no slot to spare', minReplicas: 2, exponent: 0.2, slots: 16 },
    { name: 'a few very hot ones', minReplicas: 2, exponent: 1.1, slots: 20 },
  ]
  const inputFor = ({ minReplicas, exponent, slots }: (typeof tables)[number]): PlanInput => {
    const random = sequence(3)
    return {
      layers: Array.from({ length: 4 }, (_, layer) => layerOf(layer, zipfLoads(128, exponent, random))),
      nodes: Array.from({ length: 16 }, (_, i) => nodeOf(`n${i}`, 4 * slots, `z${i % 2}`)),
      present: [],
      minReplicas,
    }
  }

  test.each(tables)('what is planned stays as it is: $name', (table) => {
    const input = inputFor(table)
    const { copies } = planPlacement(input)
    expect(planPlacement({ ...input, present: copies }).moves).toEqual([])
  })

  test.each(tables)('loads that drift by 10 % move at most 5 % of the copies: $name', (table) => {
    const input = inputFor(table)
    const { copies } = planPlacement(input)
    const later = drifted(input, sequence(11))
    const plan = planPlacement({ ...later, present: copies })
    expect(plan.moves.length).toBeLessThanOrEqual(0.05 * copies.length)
    expect(plan.balancedness).toBeGreaterThanOrEqual(planPlacement(later).balancedness - 0.02)
  })

  test.each(tables.slice(1))('of a lost node only what it held is loaded elsewhere: $name', (table) => {
    const input = inputFor(table)
    const { copies } = planPlacement(input)
    const nodes = input.nodes.slice(1)
    const held = copies.filter(({ node }) => node === 'n0').length
    const plan = planPlacement({ ...input, nodes, present: copies, movesMax: 0 })
    expect(plan.moves.filter(({ to }) => to !== '').length).toBeLessThanOrEqual(held)
    for (const homes of homesOf(plan).values()) expect(homes).not.toContain('n0')
    const missing = plan.unmet.filter(({ rule }) => rule === 'coverage' || rule === 'replicas')
    const hasRoom = nodes.length * table.slots >= 128 * table.minReplicas
    expect(missing.length).toBe(hasRoom ? 0 : 1)
  })

  test.each(tables)('a node that joins gets its share: $name', (table) => {
    const input = inputFor(table)
    const { copies } = planPlacement(input)
    const nodes = [...input.nodes, nodeOf('new', 4 * table.slots, 'z0')]
    const plan = planPlacement({ ...input, nodes, present: copies })
    expect(plan.balancedness).toBeGreaterThanOrEqual(planPlacement({ ...input, nodes }).balancedness - 0.02)
    for (const { layer, loads } of input.layers) {
      const mean = loads.reduce((sum, load) => sum + load, 0) / nodes.length
      expect(loadsOf(plan, { ...input, nodes }, layer).get('new')).toBeGreaterThan(0.8 * mean)
    }
    // Hardly more than its own copies are loaded.
    expect(plan.moves.filter(({ to }) => to !== '').length).toBeLessThan(0.25 * copies.length)
  })

  test('a move says from where, to where, and why', () => {
    const loads = [8, 1, 1, 1]
    const nodes = [nodeOf('a', 8), nodeOf('b', 8)]
    const present = [0, 1, 2, 3].map((expert) => ({ layer: 5, expert, node: 'a' }))
    const plan = planPlacement({ layers: [layerOf(5, loads)], nodes, present, minReplicas: 1 })
    expect(plan.balancedness).toBeCloseTo(1, 2)
    expect(plan.moves).toEqual([{ layer: 5, expert: 0, from: '', to: 'b', why: 'a was the busiest of its layer' }])
    const lost = planPlacement({ layers: [layerOf(5, loads)], nodes: [nodeOf('b', 8)], present, minReplicas: 2 })
    expect(lost.moves.map(({ to }) => to)).toEqual(['b', 'b', 'b', 'b'])
    expect(lost.unmet).toEqual([
      {
        rule: 'replicas',
        text: '4 of 4 experts have fewer copies than minReplicas 2: only 1 node can hold experts',
        count: 4,
      },
    ])
  })
})

describe('rules', () => {
  test('ranks count: a node with three carries three times as much', () => {
    const input: PlanInput = {
      layers: [
        layerOf(
          0,
          Array.from({ length: 64 }, () => 10),
        ),
      ],
      nodes: [nodeOf('big', 200, '', 3), nodeOf('small', 200)],
      present: [],
      minReplicas: 1,
    }
    const loads = loadsOf(planPlacement(input), input, 0)
    expect(loads.get('big')).toBeCloseTo(480, 0)
    expect(loads.get('small')).toBeCloseTo(160, 0)
  })

  test('unmeasured loads are spread evenly', () => {
    const nodes = ['a', 'b', 'c'].map((id) => nodeOf(id, 100))
    const plan = planPlacement({ layers: [layerOf(0, new Float64Array(12))], nodes, present: [], minReplicas: 2 })
    expect(balancednessOf(plan.copies, [layerOf(0, new Float64Array(12).fill(1))], nodes)).toBeGreaterThan(0.99)
    expect(plan.balancedness).toBe(1)
  })

  test('copies of a zone that failed are made in the others', () => {
    const nodes = ['a', 'b', 'c', 'd'].map((id, i) => nodeOf(id, 40, i < 2 ? 'east' : 'west'))
    const layers = [layerOf(0, zipfLoads(16, 0.5, sequence(1)))]
    const { copies } = planPlacement({ layers, nodes, present: [], minReplicas: 2 })
    const plan = planPlacement({ layers, nodes: nodes.slice(0, 2), present: copies, minReplicas: 2 })
    expect(plan.unmet).toEqual([])
    for (const homes of homesOf(plan).values()) expect(homes.length).toBe(2)
    // Both zones again: copies that shared one are spread.
    const again = planPlacement({ layers, nodes, present: plan.copies, minReplicas: 2 })
    expect(again.unmet).toEqual([])
    for (const homes of homesOf(again).values()) expect(new Set(homes.map((id) => id < 'c')).size).toBe(2)
  })

  test('a node without room for one expert is named', () => {
    const nodes = [nodeOf('a', 10), nodeOf('tiny', 0.5)]
    const plan = planPlacement({ layers: [layerOf(0, [1, 2, 3])], nodes, present: [], minReplicas: 1 })
    expect(plan.unmet).toEqual([
      { rule: 'memory', text: 'too little memory for one expert of 1000 bytes: tiny (500 bytes)', count: 1 },
    ])
    expect(plan.copies.map(({ node }) => node)).toEqual(['a', 'a', 'a'])
  })

  test('without nodes nothing is planned, and said so', () => {
    const plan = planPlacement({ layers: [layerOf(0, [1, 2])], nodes: [], present: [], minReplicas: 1 })
    expect(plan.copies).toEqual([])
    expect(plan.unmet[0]).toEqual({ rule: 'coverage', text: 'no node can hold experts: 2 have no copy', count: 2 })
  })

  test('impossible loads, unknown layers, experts and nodes do no harm', () => {
    const plan = planPlacement({
      layers: [layerOf(0, [Number.NaN, -1, Number.POSITIVE_INFINITY, 4])],
      nodes: [nodeOf('a', 10)],
      present: [
        { layer: 9, expert: 0, node: 'a' },
        { layer: 0, expert: 77, node: 'a' },
        { layer: 0, expert: 0, node: 'gone' },
      ],
      minReplicas: 1,
    })
    expect(plan.copies.map(({ expert, weight }) => [expert, weight])).toEqual([0, 1, 2, 3].map((i) => [i, weightUnit]))
  })
})
