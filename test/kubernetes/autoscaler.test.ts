import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type Action,
  decide,
  type ExpertPod,
  type GroupState,
  initialState,
  type NodeLoad,
  type Observation,
} from '../../services/kubernetes/autoscaler.ts'
import type { ScaledGroup, ScalePolicy } from '../../services/kubernetes/settings.ts'

const policy: ScalePolicy = {
  busyHigh: 0.8,
  busyLow: 0.5,
  queueMsHigh: 50,
  memoryHigh: 0.9,
  upAfterSeconds: 10,
  downAfterSeconds: 60,
  coolDownSeconds: 30,
  drainSeconds: 120,
}
const group: ScaledGroup = { name: 'default', statefulSet: 'moesh-expert-default', minReplicas: 1, maxReplicas: 4 }

/** A group that has been quiet for long: no pause in the way. */
const rested: GroupState = { ...initialState(0), lastStepMs: -1_000_000 }

function node(index: number, more: Partial<NodeLoad> = {}): NodeLoad {
  return {
    nodeId: `node-${index}`,
    state: 'serving',
    isDrainedToScale: false,
    busy: 0.6,
    queueMs: 0,
    memoryBytes: 1000,
    usedBytes: 400,
    ...more,
  }
}

function pod(index: number, more: Partial<ExpertPod> = {}, load: Partial<NodeLoad> = {}): ExpertPod {
  return {
    name: `moesh-expert-default-${index}`,
    ordinal: index,
    isReady: true,
    isLeaving: false,
    unschedulable: null,
    node: node(index, load),
    ...more,
  }
}

function seen(nowMs: number, pods: readonly ExpertPod[], replicas = pods.length): Observation {
  return { nowMs, replicas, pods }
}

function pods(count: number, load: Partial<NodeLoad> = {}): ExpertPod[] {
  return Array.from({ length: count }, (_, index) => pod(index, {}, load))
}

/** Rounds of 5 s with the same load, until something happens or the time is over. */
function run(state: GroupState, look: (nowMs: number) => Observation, seconds: number) {
  for (let nowMs = 0; nowMs <= seconds * 1000; nowMs += 5000) {
    const decision = decide(policy, group, state, look(nowMs))
    if (decision.actions.length > 0) return { ...decision, nowMs }
    state = decision.state
  }
  return { state, actions: [] as readonly Action[], nowMs: Number.POSITIVE_INFINITY }
}

const reasons = (actions: readonly Action[]) =>
  actions.map((action) => (action.kind === 'explain' ? action.explanation.reason : action.kind))
const messages = (actions: readonly Action[]) =>
  actions.flatMap((action) => (action.kind === 'explain' ? [action.explanation.message] : []))

describe('growing', () => {
  it.each([
    ['work', { busy: 0.95 }, 'ranks are busy 95 % of the time, more than 80 %'],
    ['waiting', { queueMs: 80 }, 'rows wait 80 ms, more than 50 ms'],
    ['room', { usedBytes: 950 }, 'shards take 95 % of the memory, more than 90 %'],
  ])('%s that lasts adds one pod and says why', (_, load, why) => {
    const { actions, nowMs } = run(rested, (now) => seen(now, pods(2, load)), 60)
    expect(nowMs).toBe(10_000)
    expect(actions).toEqual([
      { kind: 'scale', from: 2, to: 3 },
      { kind: 'explain', explanation: { type: 'Normal', reason: 'ScaledUp', message: `from 2 to 3 pods: ${why}` } },
    ])
  })

  it('load that comes and goes adds nothing', () => {
    const { actions } = run(rested, (now) => seen(now, pods(2, { busy: now % 10_000 === 0 ? 0.95 : 0.6 })), 300)
    expect(actions).toEqual([])
  })

  it('waits out the pause after a step', () => {
    const { nowMs } = run(initialState(0), (now) => seen(now, pods(2, { busy: 0.95 })), 60)
    expect(nowMs).toBe(30_000)
  })

  it('waits for the pod it asked for', () => {
    const growing = [...pods(2, { busy: 0.95 }), pod(2, { isReady: false, node: null })]
    expect(run(rested, (now) => seen(now, growing), 600).actions).toEqual([])
    expect(run(rested, (now) => seen(now, pods(2, { busy: 0.95 }), 3), 600).actions).toEqual([])
  })

  it('stops at the maximum, and says so once', () => {
    const first = run(rested, (now) => seen(now, pods(4, { busy: 0.95 })), 60)
    expect(reasons(first.actions)).toEqual(['AtMaximum'])
    expect(run(first.state, (now) => seen(20_000 + now, pods(4, { busy: 0.95 })), 600).actions).toEqual([])
  })

  it('goes up to the minimum at once', () => {
    const { actions } = decide(policy, { ...group, minReplicas: 3 }, initialState(0), seen(0, pods(1)))
    expect(actions[0]).toEqual({ kind: 'scale', from: 1, to: 2 })
  })

  it('knows nothing while no node has reported', () => {
    expect(run(rested, (now) => seen(now, [pod(0, { node: null })]), 600).actions).toEqual([])
    expect(run(rested, (now) => seen(now, [], 0), 600).actions[0]).toEqual({ kind: 'scale', from: 0, to: 1 })
  })
})

describe('shrinking', () => {
  it('drains the pod that Kubernetes would take, then lets it go', () => {
    const first = run(rested, (now) => seen(now, pods(3, { busy: 0.1 })), 600)
    expect(first.nowMs).toBe(60_000)
    expect(first.actions[0]).toEqual({ kind: 'drain', nodeId: 'node-2' })
    expect(messages(first.actions)[0]).toMatch(/^moesh-expert-default-2 moves its experts elsewhere.*15 % of the time/)

    const draining = [...pods(2, { busy: 0.15 }), pod(2, {}, { state: 'draining' })]
    const waiting = decide(policy, group, first.state, seen(70_000, draining))
    expect(waiting.actions).toEqual([])

    const drained = [...pods(2, { busy: 0.15 }), pod(2, { isReady: false }, { state: 'drained' })]
    const last = decide(policy, group, waiting.state, seen(75_000, drained))
    expect(last.actions[0]).toEqual({ kind: 'scale', from: 3, to: 2 })
    expect(reasons(last.actions)).toEqual(['scale', 'ScaledDown'])

    const leaving = [...pods(2, { busy: 0.15 }), pod(2, { isLeaving: true }, { state: 'drained' })]
    expect(decide(policy, group, last.state, seen(80_000, leaving, 2)).actions).toEqual([])
  })

  it('does not when the others would be too busy, wait, or lack the room', () => {
    expect(run(rested, (now) => seen(now, pods(2, { busy: 0.3 })), 600).actions).toEqual([]) // 0.6 for the one that stays
    expect(run(rested, (now) => seen(now, pods(2, { busy: 0.1, queueMs: 20 })), 600).actions).toEqual([])
    expect(run(rested, (now) => seen(now, pods(2, { busy: 0.1, usedBytes: 450 })), 600).actions).toEqual([])
  })

  it('never below the minimum', () => {
    expect(run(rested, (now) => seen(now, pods(1, { busy: 0 })), 6000).actions).toEqual([])
  })

  it('gives up when the load comes back', () => {
    const { state } = run(rested, (now) => seen(now, pods(3, { busy: 0.1 })), 600)
    const busy = [...pods(2, { busy: 0.95 }), pod(2, {}, { state: 'draining', busy: 0 })]
    const { actions } = decide(policy, group, state, seen(70_000, busy))
    expect(actions[0]).toEqual({ kind: 'undrain', nodeId: 'node-2' })
    expect(reasons(actions)).toEqual(['undrain', 'DrainCancelled'])
  })

  it('gives up when the experts find no other place in time', () => {
    const { state } = run(rested, (now) => seen(now, pods(3, { busy: 0.1 })), 600)
    const draining = [...pods(2, { busy: 0.1 }), pod(2, {}, { state: 'draining' })]
    expect(decide(policy, group, state, seen(180_000, draining)).actions).toEqual([])
    const { actions } = decide(policy, group, state, seen(181_000, draining))
    expect(reasons(actions)).toEqual(['undrain', 'DrainTimedOut'])
  })

  it('gives way to somebody who scales by hand', () => {
    const { state } = run(rested, (now) => seen(now, pods(3, { busy: 0.1 })), 600)
    const more = [...pods(2, { busy: 0.1 }), pod(2, {}, { state: 'draining' }), pod(3, { node: null, isReady: false })]
    expect(reasons(decide(policy, group, state, seen(70_000, more, 4)).actions)).toEqual(['undrain', 'DrainCancelled'])
    expect(decide(policy, group, state, seen(70_000, pods(2, { busy: 0.1 }), 2)).actions).toEqual([])
  })

  it('goes down to the maximum one pod at a time, whatever the load', () => {
    const { actions, state } = decide(policy, { ...group, maxReplicas: 2 }, rested, seen(0, pods(3, { busy: 0.95 })))
    expect(actions[0]).toEqual({ kind: 'drain', nodeId: 'node-2' })
    const drained = [...pods(2, { busy: 0.95 }), pod(2, {}, { state: 'drained' })]
    const next = decide(policy, { ...group, maxReplicas: 2 }, state, seen(5000, drained))
    expect(next.actions[0]).toEqual({ kind: 'scale', from: 3, to: 2 })
  })

  it('is carried on by a new leader', () => {
    const drained = [...pods(2, { busy: 0.1 }), pod(2, {}, { state: 'drained', isDrainedToScale: true })]
    expect(decide(policy, group, initialState(0), seen(0, drained)).actions[0]).toEqual({
      kind: 'scale',
      from: 3,
      to: 2,
    })
  })

  it('leaves alone what an operator drains', () => {
    const drained = [...pods(2, { busy: 0.1 }), pod(2, {}, { state: 'drained' })]
    expect(run(rested, (now) => seen(now, drained), 600).actions).toEqual([])
  })
})

describe('a pod without a node', () => {
  const stuck = (nowMs: number) =>
    seen(nowMs, [
      ...pods(2),
      pod(2, { isReady: false, node: null, unschedulable: { why: '1 Insufficient nvidia.com/gpu', sinceMs: 0 } }),
    ])

  it('is named with the reason, once, and not at once', () => {
    const first = run(rested, stuck, 60)
    expect(first.nowMs).toBe(10_000)
    expect(messages(first.actions)).toEqual([
      'moesh-expert-default-2 finds no node: 1 Insufficient nvidia.com/gpu; add nodes, ask for less, or lower the maximum',
    ])
    expect(run(first.state, (now) => stuck(20_000 + now), 600).actions).toEqual([])
  })

  it('is named again after it was placed and got stuck once more', () => {
    const first = run(rested, stuck, 60)
    const placed = decide(policy, group, first.state, seen(20_000, pods(3)))
    expect(reasons(decide(policy, group, placed.state, stuck(30_000)).actions)).toEqual(['Unschedulable'])
  })
})

describe('whatever is seen', () => {
  const anyNode = fc.record({
    nodeId: fc.string({ minLength: 1, maxLength: 4 }),
    state: fc.constantFrom('joining', 'serving', 'draining', 'drained', 'lost' as const),
    isDrainedToScale: fc.boolean(),
    busy: fc.double({ min: 0, max: 1, noNaN: true }),
    queueMs: fc.double({ min: 0, max: 500, noNaN: true }),
    memoryBytes: fc.nat({ max: 1000 }),
    usedBytes: fc.nat({ max: 1000 }),
  }) as fc.Arbitrary<NodeLoad>
  const anyRound = fc.record({
    replicas: fc.nat({ max: 7 }),
    pods: fc.array(fc.tuple(fc.boolean(), fc.boolean(), fc.option(anyNode)), { maxLength: 7 }),
  })

  it('a step is one pod, between the bounds or towards them, and steps are apart by the pause', () => {
    fc.assert(
      fc.property(fc.array(anyRound, { minLength: 1, maxLength: 30 }), (rounds) => {
        let state = initialState(0)
        let lastByLoadMs = 0
        rounds.forEach(({ replicas, pods: shapes }, round) => {
          const nowMs = round * 20_000
          const list = shapes.map(([isReady, isLeaving, own], index) => pod(index, { isReady, isLeaving, node: own }))
          const decision = decide(policy, group, state, seen(nowMs, list, replicas))
          const steps = decision.actions.filter((action) => action.kind === 'scale')
          expect(steps.length).toBeLessThanOrEqual(1)
          for (const { from, to } of steps) {
            expect(from).toBe(replicas)
            expect(Math.abs(to - from)).toBe(1)
            if (to > from) expect(to).toBeLessThanOrEqual(group.maxReplicas)
            if (to < from) expect(to).toBeGreaterThanOrEqual(group.minReplicas)
            if (to > from && from >= group.minReplicas) {
              expect(nowMs - lastByLoadMs).toBeGreaterThanOrEqual(policy.coolDownSeconds * 1000)
            }
            lastByLoadMs = nowMs
          }
          state = decision.state
        })
      }),
      { numRuns: 300 },
    )
  })
})
