import { expect, test } from 'vitest'
import type { Placement } from '../../services/cluster/placement.ts'
import { Simulation } from './simulation.ts'

/** The leader needs about 600 ms here, from the drain to the end of the call that writes the target. */
const askedAfterMs = Array.from({ length: 16 }, (_, step) => step * 50)

test.each(askedAfterMs)(
  '%i ms after a drain an operator asks for a rebalance: no two placements have one epoch',
  async (ms) => {
    const world = new Simulation()
    await world.coordinator('c1')
    for (const id of ['a', 'b', 'c']) await world.expert(id)
    await world.clock.advance(5000)
    // So that a rebalance has something to move.
    await world.store
      .seenBy('c2')
      .publishLoad('c2', { layers: [1, 2].map((layer) => ({ layer, rowsPerSecond })) }, 60_000)
    await world.store.seenBy('the operator').setDrained('c', 'operator')
    const epochs: number[] = []
    world.store.delay = (name, args) => {
      if (name === 'writeTarget') epochs.push((args[0] as Placement).epoch)
      return new Promise((resolve) => void world.clock.after(100, resolve))
    }
    await world.clock.advance(ms)
    const rebalance = world.coordinators.get('c1')?.controller.rebalance(false)
    await world.clock.advance(2000)
    const { epoch } = (await rebalance) ?? {}
    expect(epochs).toContain(epoch)
    expect(new Set(epochs).size).toBe(epochs.length)
  },
)

const rowsPerSecond = [1000, 900, 800, 700, 1, 1, 1, 1]

test('before and after a rebalance are of one reading of the load, however it moves meanwhile', async () => {
  const world = new Simulation()
  await world.coordinator('c1')
  for (const id of ['a', 'b', 'c']) await world.expert(id)
  await world.clock.advance(5000)
  let isSkewed = false
  world.store.delay = async (name) => {
    if (name !== 'loads') return
    isSkewed = !isSkewed
    const rates = isSkewed ? rowsPerSecond : rowsPerSecond.map(() => 100)
    const layers = [1, 2].map((layer) => ({ layer, rowsPerSecond: rates }))
    await world.store.seenBy('c2').publishLoad('c2', { layers }, 60_000)
  }
  const { controller } = world.coordinators.get('c1') ?? {}
  const heard = new Set<number>()
  for (let ask = 0; ask < 4; ask++) {
    const asked = controller?.rebalance(true)
    await world.clock.advance(100)
    const { balancednessBefore = 2, balancednessAfter = 0 } = (await asked) ?? {}
    expect(balancednessAfter).toBeGreaterThanOrEqual(balancednessBefore)
    heard.add(balancednessBefore)
  }
  expect(heard.size).toBeGreaterThan(1)
})
