import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { planStep, type Schedulable } from '../../services/coordinator/scheduler.ts'
import { kvBlockTokens } from '../../services/coordinator/team/kv-cache.ts'

const blocks = (tokens: number) => Math.ceil(tokens / kvBlockTokens)

const limits = fc.record({
  rowsMax: fc.integer({ min: 8, max: 600 }),
  sequencesMax: fc.integer({ min: 1, max: 8 }),
  blocksMax: fc.integer({ min: 4, max: 64 }),
})
const running = fc.record({
  priority: fc.integer({ min: -2, max: 2 }),
  arrival: fc.nat(1000),
  cached: fc.nat(400),
  pending: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 300 })),
})
const waiting = running.map((sequence): Schedulable => ({ ...sequence, cached: 0 }))

/** Running sequences as they can be: no more than the limits, and within the cache. */
const situations = fc
  .tuple(limits, fc.array(running, { maxLength: 8 }), fc.array(waiting, { maxLength: 8 }))
  .map(([limit, run, wait]) => {
    const kept: Schedulable[] = []
    let used = 0
    for (const sequence of run.slice(0, limit.sequencesMax)) {
      if (used + blocks(sequence.cached) > limit.blocksMax) continue
      used += blocks(sequence.cached)
      kept.push(sequence)
    }
    return { limit, run: kept, wait }
  })

describe('a step plan', () => {
  test('stays within rows, sequences and KV blocks, and gives nobody more than it needs', () => {
    fc.assert(
      fc.property(situations, ({ limit, run, wait }) => {
        const plan = planStep(run, wait, limit)
        const rows = plan.scheduled.reduce((sum, { count }) => sum + count, 0)
        expect(rows).toBeLessThanOrEqual(limit.rowsMax)
        for (const { sequence, count } of plan.scheduled) {
          expect(count).toBeGreaterThan(0)
          expect(count).toBeLessThanOrEqual(sequence.pending)
        }
        const stays = [...run.filter((sequence) => !plan.preempted.includes(sequence)), ...plan.admitted]
        if (plan.admitted.length > 0) expect(stays.length).toBeLessThanOrEqual(limit.sequencesMax)
        const counts = new Map(plan.scheduled.map(({ sequence, count }) => [sequence, count]))
        const used = stays.reduce((sum, sequence) => sum + blocks(sequence.cached + (counts.get(sequence) ?? 0)), 0)
        // A sequence that is alone may begin whatever it needs; the engine's limits let any single one fit.
        if (stays.length > 1) expect(used).toBeLessThanOrEqual(limit.blocksMax)
      }),
      { seed: 5, numRuns: 500 },
    )
  })

  test('always lets somebody work while anybody has something to do', () => {
    fc.assert(
      fc.property(situations, ({ limit, run, wait }) => {
        const fits = run.every(({ cached, pending }) => blocks(cached + pending) <= limit.blocksMax)
        fc.pre(fits && run.length + wait.length > 0)
        expect(planStep(run, wait, limit).scheduled.length).toBeGreaterThan(0)
      }),
      { seed: 6, numRuns: 500 },
    )
  })

  test('prefers decodes to prompts, and gives up the lowest priority and the latest arrival first', () => {
    const early: Schedulable = { priority: 0, arrival: 1, cached: 2 * kvBlockTokens, pending: 1 }
    const late: Schedulable = { priority: 0, arrival: 2, cached: 2 * kvBlockTokens, pending: 1 }
    const low: Schedulable = { priority: -1, arrival: 0, cached: 2 * kvBlockTokens, pending: 300 }
    const plan = planStep([low, late, early], [], { rowsMax: 10, sequencesMax: 8, blocksMax: 6 })
    expect(plan.preempted).toEqual([low])
    expect(plan.scheduled).toEqual([
      { sequence: early, count: 1 },
      { sequence: late, count: 1 },
    ])
  })

  test('cuts a long prompt into chunks that fill the step', () => {
    const prompt: Schedulable = { priority: 0, arrival: 1, cached: 0, pending: 1000 }
    const plan = planStep([], [prompt], { rowsMax: 128, sequencesMax: 4, blocksMax: 32 })
    expect(plan.scheduled).toEqual([{ sequence: prompt, count: 128 }])
  })
})
