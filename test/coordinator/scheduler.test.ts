import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type KvView, planStep, type Schedulable } from '../../services/coordinator/scheduler.ts'
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
  guessed: fc.oneof(fc.constant(0), fc.nat(40)),
})
type Waiting = Schedulable & { found: { blocks: number; unused: number } }
const waiting = fc.tuple(running, fc.nat(5), fc.nat(5)).map(([sequence, found, used]): Waiting => {
  const blocks = Math.min(found, Math.floor((sequence.pending - 1) / kvBlockTokens))
  return { ...sequence, cached: 0, guessed: 0, found: { blocks, unused: Math.max(0, blocks - used) } }
})

/** A cache in which running sequences share nothing. */
function cacheOf(run: readonly Schedulable[], blocksMax: number): KvView<Schedulable | Waiting> {
  const held = ({ cached }: Schedulable) => blocks(cached)
  return {
    free: blocksMax - run.reduce((sum, sequence) => sum + held(sequence), 0),
    held,
    own: held,
    found: (sequence) => {
      const found = 'found' in sequence ? sequence.found : { blocks: 0, unused: 0 }
      return { ...found, tokens: found.blocks * kvBlockTokens }
    },
  }
}

/** Running sequences as they can be: no more than the limits, and within the cache. */
const situations = fc
  .tuple(limits, fc.array(running, { maxLength: 8 }), fc.array(waiting, { maxLength: 8 }))
  .map(([limit, run, wait]) => {
    const kept: (Schedulable | Waiting)[] = []
    let used = 0
    for (const sequence of run.slice(0, limit.sequencesMax)) {
      if (used + blocks(sequence.cached) > limit.blocksMax) continue
      used += blocks(sequence.cached)
      kept.push(sequence)
    }
    const free = limit.blocksMax - used
    // What is found is there: used by those that run, or unused and free.
    const found = wait.map((sequence): Waiting => {
      const unused = Math.min(sequence.found.unused, free)
      return { ...sequence, found: { blocks: Math.min(sequence.found.blocks, used + unused), unused } }
    })
    return { limit, run: kept, wait: found, kv: cacheOf(kept, limit.blocksMax) }
  })

describe('a step plan', () => {
  test('stays within rows, sequences and KV blocks, and gives nobody more than it needs', () => {
    fc.assert(
      fc.property(situations, ({ limit, run, wait, kv }) => {
        const plan = planStep(run, wait, limit, kv)
        const rows = plan.scheduled.reduce((sum, { count, guessed }) => sum + count + guessed, 0)
        expect(rows).toBeLessThanOrEqual(limit.rowsMax)
        for (const { sequence, count, guessed } of plan.scheduled) {
          expect(count).toBeGreaterThan(0)
          expect(count).toBeLessThanOrEqual(sequence.pending)
          expect(guessed).toBeGreaterThanOrEqual(0)
          expect(guessed).toBeLessThanOrEqual(count === sequence.pending ? sequence.guessed : 0)
        }
        const stays = [...run.filter((sequence) => !plan.preempted.includes(sequence)), ...plan.admitted]
        if (plan.admitted.length > 0) expect(stays.length).toBeLessThanOrEqual(limit.sequencesMax)
        const counts = new Map(plan.scheduled.map(({ sequence, count, guessed }) => [sequence, count + guessed]))
        // What is found and used by others takes no room.
        const used = stays.reduce((sum, sequence) => {
          const found = kv.found(sequence)
          const tokens = sequence.cached + found.tokens + (counts.get(sequence) ?? 0)
          return sum + blocks(tokens) - found.blocks + found.unused
        }, 0)
        // A sequence that is alone may begin whatever it needs; the engine's limits let any single one fit.
        if (stays.length > 1) expect(used).toBeLessThanOrEqual(limit.blocksMax)
      }),
      { seed: 5, numRuns: 500 },
    )
  })

  test('always lets somebody work while anybody has something to do', () => {
    fc.assert(
      fc.property(situations, ({ limit, run, wait, kv }) => {
        const fits = run.every(({ cached, pending }) => blocks(cached + pending) <= limit.blocksMax)
        fc.pre(fits && run.length + wait.length > 0)
        expect(planStep(run, wait, limit, kv).scheduled.length).toBeGreaterThan(0)
      }),
      { seed: 6, numRuns: 500 },
    )
  })

  test('prefers decodes to prompts, and gives up the lowest priority and the latest arrival first', () => {
    const early: Schedulable = { priority: 0, arrival: 1, cached: 2 * kvBlockTokens, pending: 1, guessed: 0 }
    const late: Schedulable = { priority: 0, arrival: 2, cached: 2 * kvBlockTokens, pending: 1, guessed: 0 }
    const low: Schedulable = { priority: -1, arrival: 0, cached: 2 * kvBlockTokens, pending: 300, guessed: 0 }
    const run = [low, late, early]
    const plan = planStep(run, [], { rowsMax: 10, sequencesMax: 8 }, cacheOf(run, 6))
    expect(plan.preempted).toEqual([low])
    expect(plan.scheduled).toEqual([
      { sequence: early, count: 1, guessed: 0 },
      { sequence: late, count: 1, guessed: 0 },
    ])
  })

  test('cuts a long prompt into chunks that fill the step', () => {
    const prompt: Schedulable = { priority: 0, arrival: 1, cached: 0, pending: 1000, guessed: 0 }
    const plan = planStep([], [prompt], { rowsMax: 128, sequencesMax: 4 }, cacheOf([], 32))
    expect(plan.scheduled).toEqual([{ sequence: prompt, count: 128, guessed: 0 }])
  })

  test('computes guesses where rows and blocks are left, and gives nothing up for them', () => {
    const cached = 2 * kvBlockTokens
    const first: Schedulable = { priority: 0, arrival: 0, cached: cached - 3, pending: 1, guessed: 20 }
    const second: Schedulable = { priority: 0, arrival: 1, cached, pending: 1, guessed: 40 }
    const guesses = (rowsMax: number, blocksMax: number, wait: Waiting[] = []) => {
      const plan = planStep([first, second], wait, { rowsMax, sequencesMax: 8 }, cacheOf([first, second], blocksMax))
      expect(plan.preempted).toEqual([])
      return plan.scheduled.map(({ guessed }) => guessed)
    }
    expect(guesses(100, 100)).toEqual([20, 40])
    expect(guesses(25, 100)).toEqual([20, 3])
    // The block of the second one's token is the last: the first one may fill its own up.
    expect(guesses(100, 5)).toEqual([2, kvBlockTokens - 1])
    const prompt = { priority: 0, arrival: 2, cached: 0, pending: 300, guessed: 0, found: { blocks: 0, unused: 0 } }
    expect(guesses(100, 100, [prompt])).toEqual([0, 0, 0])
  })

  test('counts of a sequence that gives up only what nobody shares with it', () => {
    const cached = 2 * kvBlockTokens
    const [first, second, third] = [0, 1, 2].map(
      (arrival): Schedulable => ({ priority: 0, arrival, cached, pending: 1, guessed: 0 }),
    )
    if (!first || !second || !third) throw new Error('three')
    const limits = { rowsMax: 10, sequencesMax: 8 }
    const planWith = (own: ReadonlyMap<Schedulable, number>, run: Schedulable[]) =>
      planStep(run, [], limits, { ...cacheOf([], 0), held: () => 2, own: (sequence) => own.get(sequence) ?? 0 })
    const run = [first, second, third]
    // The last one shares all that it has, so the one before has to go, too.
    const plan = planWith(new Map([[second, 1]]), run)
    expect(plan.preempted).toEqual([third, second])
    expect(plan.scheduled).toEqual([{ sequence: first, count: 1, guessed: 0 }])
    // Where all share all, nobody is left, and blocks are free that this plan could not count on.
    expect(planWith(new Map(), [first, second])).toEqual({ scheduled: [], preempted: [second, first], admitted: [] })
  })

  test('leaves out what is in the cache, and counts what others use of it once', () => {
    const alike = (arrival: number): Waiting => ({
      ...{ priority: 0, arrival, cached: 0, pending: 2 * kvBlockTokens + 5, guessed: 0 },
      found: { blocks: 2, unused: 0 },
    })
    const first: Schedulable = { priority: 0, arrival: 0, cached: 2 * kvBlockTokens + 5, pending: 1, guessed: 0 }
    const plan = planStep(
      [first],
      [alike(1), alike(2), alike(3)],
      { rowsMax: 64, sequencesMax: 8 },
      cacheOf([first], 5),
    )
    expect(plan.scheduled.map(({ count }) => count)).toEqual([1, 5, 5])
    expect(plan.preempted).toEqual([])
  })
})
