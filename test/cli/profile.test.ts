import { expect, test } from 'vitest'
import { type ProfileCounters, profileText, tokenProfile } from '../../services/cli/profile.ts'

const phase = (name: string, seconds: number, runtime_seconds: number) => ({ name, seconds, runtime_seconds })

/** 100 decode steps of 10 ms in a model of 4 layers, 2 of them with experts. */
const after: ProfileCounters = {
  coordinator: 'c1',
  threads: 2,
  layers: 4,
  moe_layers: 2,
  steps: [
    {
      kind: 'decode',
      steps: 110,
      sequences: 1600,
      rows: 1600,
      dispatches: 220,
      seconds: 1.1,
      team_seconds: 0.5,
      head_seconds: 0.1,
      dispatch_seconds: 0.35,
      expert_seconds: 0.3,
      inside_seconds: 0.38,
      phases: [phase('qkv', 0.3, 0.28), phase('router', 0.05, 0.1), phase('waiting', 0.15, 0)],
    },
  ],
  one_row_overhead: [{ from_seconds: 0.0002, to_seconds: 0.0004, count: 12 }],
  ranks: { compute_seconds: 0.9, runtime_seconds: 0.82 },
}
const before: ProfileCounters = {
  ...after,
  steps: [
    {
      kind: 'decode',
      steps: 10,
      sequences: 0,
      rows: 0,
      dispatches: 20,
      seconds: 0.1,
      team_seconds: 0,
      head_seconds: 0,
      dispatch_seconds: 0,
      expert_seconds: 0,
      inside_seconds: 0,
      phases: [],
    },
  ],
  one_row_overhead: [{ from_seconds: 0.0002, to_seconds: 0.0004, count: 2 }],
  ranks: { compute_seconds: 0.1, runtime_seconds: 0.1 },
}

test('the parts of a step add up to it, and so do those outside kernels', () => {
  const [decode] = tokenProfile(before, after).kinds
  expect(decode).toMatchObject({ kind: 'decode', steps: 100, sequences_per_step: 16, ms_per_step: expect.closeTo(10) })
  const sum = (of: (part: { ms_per_step: number; typescript_share: number | null }) => number) =>
    (decode?.parts ?? []).reduce((total, part) => total + of(part), 0)
  expect(sum((it) => it.ms_per_step)).toBeCloseTo(10)
  expect(sum((it) => it.typescript_share ?? 0)).toBeCloseTo(decode?.typescript_share ?? Number.NaN)
  // 1 s, less 0.38 s of the team and nine tenths of the experts' 0.3 s inside kernels.
  expect(decode?.typescript_share).toBeCloseTo(1 - 0.38 - 0.3 * 0.9)
  const part = (name: string) => decode?.parts.find((it) => it.part === name)
  expect(part('qkv')?.us_per_layer).toBeCloseTo(750)
  expect(part('experts compute')?.us_per_layer).toBeCloseTo(1500)
  expect(part('router')?.typescript_share).toBe(0)
  // While one thread was in the router, the others waited.
  expect(part('threads wait for each other')?.typescript_share).toBeCloseTo(0.1)
  expect(decode?.handover_share).toBeCloseTo(0.1 + 0.1 + 0.05)
})

test('what other machines compute, and the way to them, is none of the share', () => {
  const [decode] = tokenProfile({ ...before, ranks: null }, { ...after, ranks: null }).kinds
  expect(decode?.typescript_share).toBeCloseTo(1 - 0.38 - 0.35)
  expect(decode?.parts.find((it) => it.part === 'dispatch beyond computing')?.typescript_share).toBeNull()
})

test('a kind of steps that did not happen, and layers without one row, are left out', () => {
  const profile = tokenProfile(after, after)
  expect(profile.kinds).toEqual([])
  expect(profile.one_row_overhead_ms).toBeNull()
  expect(profileText(profile)).toBe('')
})

test('the table', () => {
  expect(
    profileText(tokenProfile(before, after)),
  ).toBe(`decode: 100 steps, each 10.00 ms for 16.0 rows of 16.0 sequences
part                         ms/step  us/layer  of the step  outside kernels
qkv                          3.000    750       30.0 %       2.0 %
router                       0.500    250       5.0 %        0.0 %
threads wait for each other  1.500    375       15.0 %       10.0 %
waking the threads           1.000              10.0 %       10.0 %
dispatch beyond computing    0.500    250       5.0 %        5.0 %
experts compute              3.000    1500      30.0 %       3.0 %
schedule and hand out        0.500              5.0 %        5.0 %
TypeScript, all but compiled kernels: 35.0 %; of it threads handing over to each other: 25.0 %

dispatch and combine beyond the experts' computing, one row, ms a layer (p50 / p90 / p99 of 10): 0.300 / 0.380 / 0.398
`)
})
