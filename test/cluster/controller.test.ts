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
