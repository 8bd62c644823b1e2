import type { ScaledGroup, ScalePolicy } from './settings.ts'

/**
 * How many pods an expert group should have. The rules are few and slow on purpose: one pod a step, a pause after each,
 * load that lasts before anything happens, and a gap between "too busy" and "idle enough" that one pod more or less
 * cannot jump. Growing too late costs latency, shrinking too early costs it twice. A pod goes only when its experts
 * have moved elsewhere, and it is always the last one of its StatefulSet, because that is the one that Kubernetes takes.
 *
 * This file decides; it does no I/O and has no clock. `scaler.ts` looks and acts.
 */
export type NodeLoad = {
  readonly nodeId: string
  readonly state: 'joining' | 'serving' | 'draining' | 'drained' | 'lost'
  /** Whether the node is drained because of a decision made here, and not by an operator. */
  readonly isDrainedToScale: boolean
  /** Share of the time that its ranks compute, mean of the ranks, 0 to 1. */
  readonly busy: number
  /** How long rows wait on the node before they are computed, a recent mean. */
  readonly queueMs: number
  /** What shards may take, and what they take. */
  readonly memoryBytes: number
  readonly usedBytes: number
}

export type ExpertPod = {
  readonly name: string
  /** The number at the end of the name; Kubernetes removes the highest one first. */
  readonly ordinal: number
  readonly isReady: boolean
  /** It was told to end. */
  readonly isLeaving: boolean
  /** Why the scheduler finds no node for it, or null. */
  readonly unschedulable: { readonly why: string; readonly sinceMs: number } | null
  /** The cluster's node in this pod, or null while it has not registered. */
  readonly node: NodeLoad | null
}

export type Observation = {
  readonly nowMs: number
  /** What the StatefulSet is told to have. */
  readonly replicas: number
  readonly pods: readonly ExpertPod[]
}

export type GroupState = {
  readonly lastStepMs: number
  readonly highSinceMs: number | null
  readonly lowSinceMs: number | null
  readonly draining: { readonly podName: string; readonly nodeId: string; readonly sinceMs: number } | null
  /** What was explained already and still holds, so that it is not said every few seconds. */
  readonly told: ReadonlySet<string>
}

export type Explanation = {
  readonly type: 'Normal' | 'Warning'
  readonly reason:
    | 'ScaledUp'
    | 'Draining'
    | 'ScaledDown'
    | 'DrainCancelled'
    | 'DrainTimedOut'
    | 'AtMaximum'
    | 'Unschedulable'
  readonly message: string
}

export type Action =
  | { readonly kind: 'scale'; readonly from: number; readonly to: number }
  | { readonly kind: 'drain'; readonly nodeId: string }
  | { readonly kind: 'undrain'; readonly nodeId: string }
  | { readonly kind: 'explain'; readonly explanation: Explanation }

export type Decision = { readonly state: GroupState; readonly actions: readonly Action[] }

/** Of a leader that has just come: the pause after a step begins, because it cannot know when the last one was. */
export function initialState(nowMs: number): GroupState {
  return { lastStepMs: nowMs, highSinceMs: null, lowSinceMs: null, draining: null, told: new Set() }
}

/** A pod that waits for a node is named after so long; a scheduler that adds nodes is often quicker. */
const unschedulableAfterMs = 10_000

/** At most one step a call; the same arguments give the same decision. */
export function decide(policy: ScalePolicy, group: ScaledGroup, before: GroupState, seen: Observation): Decision {
  const { told, actions } = explainUnschedulable(before, seen)
  const state = { ...before, told }
  const step = chooseStep(policy, group, state, seen)
  return { state: step.state, actions: [...actions, ...step.actions] }
}

function chooseStep(policy: ScalePolicy, group: ScaledGroup, state: GroupState, seen: Observation): Decision {
  const draining = state.draining ?? adoptDrain(seen)
  if (draining !== null) return continueDrain(policy, group, { ...state, draining }, seen, draining)

  const { replicas, nowMs } = seen
  if (replicas < group.minReplicas) {
    return stepUp(state, seen, `the minimum is ${group.minReplicas}`)
  }
  // While pods come or go, the load says nothing about the number that was asked for.
  if (!isSettled(seen)) return { state: { ...state, highSinceMs: null, lowSinceMs: null }, actions: [] }
  if (replicas > group.maxReplicas) {
    return startDrain(state, seen, `the maximum is ${group.maxReplicas}`)
  }

  const load = groupLoad(seen)
  const high = highReason(policy, load)
  const low = high === null ? lowReason(policy, load) : null
  const next: GroupState = {
    ...state,
    highSinceMs: high === null ? null : (state.highSinceMs ?? nowMs),
    lowSinceMs: low === null ? null : (state.lowSinceMs ?? nowMs),
  }
  const isCool = nowMs - state.lastStepMs >= policy.coolDownSeconds * 1000

  if (high !== null && lasted(next.highSinceMs, policy.upAfterSeconds, nowMs)) {
    if (replicas >= group.maxReplicas) return tellOnce(next, 'at-maximum', atMaximum(group, high))
    if (isCool) return stepUp(next, seen, high)
  }
  if (
    low !== null &&
    replicas > group.minReplicas &&
    isCool &&
    lasted(next.lowSinceMs, policy.downAfterSeconds, nowMs)
  ) {
    return startDrain(next, seen, low)
  }
  return { state: high === null ? forget(next, 'at-maximum') : next, actions: [] }
}

export type GroupLoad = { pods: number; busy: number; queueMs: number; memoryBytes: number; usedBytes: number }

function groupLoad(seen: Observation): GroupLoad {
  const nodes = seen.pods.flatMap((pod) => (pod.node === null ? [] : [pod.node]))
  const sum = (value: (node: NodeLoad) => number) => nodes.reduce((total, node) => total + value(node), 0)
  return {
    pods: nodes.length,
    busy: sum((node) => node.busy) / nodes.length,
    queueMs: sum((node) => node.queueMs) / nodes.length,
    memoryBytes: sum((node) => node.memoryBytes),
    usedBytes: sum((node) => node.usedBytes),
  }
}

/** Any one of the three is enough: work, waiting, or room. */
function highReason(policy: ScalePolicy, load: GroupLoad): string | null {
  if (load.busy > policy.busyHigh)
    return `ranks are busy ${percent(load.busy)} of the time, more than ${percent(policy.busyHigh)}`
  if (load.queueMs > policy.queueMsHigh) {
    return `rows wait ${load.queueMs.toFixed(0)} ms, more than ${policy.queueMsHigh} ms`
  }
  const used = load.usedBytes / load.memoryBytes
  if (used > policy.memoryHigh)
    return `shards take ${percent(used)} of the memory, more than ${percent(policy.memoryHigh)}`
  return null
}

/** All three must allow it, judged as they would be with one pod less. */
function lowReason(policy: ScalePolicy, load: GroupLoad): string | null {
  if (load.pods < 2) return null
  const remaining = (load.pods - 1) / load.pods
  const busyAfter = load.busy / remaining
  if (busyAfter >= policy.busyLow) return null
  if (load.queueMs > policy.queueMsHigh / 4) return null
  // A margin below the threshold that would add the pod again.
  if (load.usedBytes > 0.9 * policy.memoryHigh * remaining * load.memoryBytes) return null
  return `with one pod less, ranks would be busy ${percent(busyAfter)} of the time, less than ${percent(policy.busyLow)}`
}

/** Every pod is there, ready, and serves. One drained by an operator is on its way out by hand: hands off. */
function isSettled(seen: Observation): boolean {
  return (
    seen.pods.length === seen.replicas &&
    seen.pods.length > 0 &&
    seen.pods.every((pod) => pod.isReady && !pod.isLeaving && pod.node?.state === 'serving')
  )
}

function stepUp(state: GroupState, seen: Observation, why: string): Decision {
  const to = seen.replicas + 1
  return {
    state: { ...state, lastStepMs: seen.nowMs, highSinceMs: null, lowSinceMs: null },
    actions: [
      { kind: 'scale', from: seen.replicas, to },
      explain('Normal', 'ScaledUp', `from ${seen.replicas} to ${to} pods: ${why}`),
    ],
  }
}

function startDrain(state: GroupState, seen: Observation, why: string): Decision {
  const pod = lastPod(seen)
  if (pod?.node == null) return { state, actions: [] }
  const { nodeId } = pod.node
  return {
    state: { ...state, lowSinceMs: null, draining: { podName: pod.name, nodeId, sinceMs: seen.nowMs } },
    actions: [
      { kind: 'drain', nodeId },
      explain('Normal', 'Draining', `${pod.name} moves its experts elsewhere before it goes: ${why}`),
    ],
  }
}

function continueDrain(
  policy: ScalePolicy,
  group: ScaledGroup,
  state: GroupState,
  seen: Observation,
  draining: { podName: string; nodeId: string; sinceMs: number },
): Decision {
  const { nowMs, replicas } = seen
  const stopped: GroupState = { ...state, draining: null, lastStepMs: nowMs, highSinceMs: null, lowSinceMs: null }
  const back: Action = { kind: 'undrain', nodeId: draining.nodeId }
  const pod = seen.pods.find(({ name }) => name === draining.podName)
  if (pod === undefined || pod.isLeaving || pod.node?.nodeId !== draining.nodeId) return { state: stopped, actions: [] }
  if (lastPod(seen)?.name !== pod.name || replicas !== pod.ordinal + 1 || replicas <= group.minReplicas) {
    const message = `${pod.name} stays: the group was scaled to ${replicas} by somebody else`
    return { state: stopped, actions: [back, explain('Normal', 'DrainCancelled', message)] }
  }
  if (pod.node.state === 'drained') {
    const message = `from ${replicas} to ${replicas - 1} pods: ${pod.name} is drained`
    return {
      state: stopped,
      actions: [{ kind: 'scale', from: replicas, to: replicas - 1 }, explain('Normal', 'ScaledDown', message)],
    }
  }
  const others = { ...seen, pods: seen.pods.filter((other) => other !== pod && other.node?.state === 'serving') }
  const high = replicas > group.maxReplicas || others.pods.length === 0 ? null : highReason(policy, groupLoad(others))
  if (high !== null) {
    return { state: stopped, actions: [back, explain('Normal', 'DrainCancelled', `${pod.name} stays: ${high}`)] }
  }
  if (nowMs - draining.sinceMs > policy.drainSeconds * 1000) {
    const message = `${pod.name} stays: its experts did not find another place within ${policy.drainSeconds} s`
    return { state: stopped, actions: [back, explain('Warning', 'DrainTimedOut', message)] }
  }
  return { state, actions: [] }
}

/** A leader that died while a pod was drained to scale left this behind; its successor carries on. */
function adoptDrain(seen: Observation): GroupState['draining'] {
  const pod = lastPod(seen)
  if (pod?.node == null || pod.isLeaving || !pod.node.isDrainedToScale) return null
  if (pod.node.state !== 'draining' && pod.node.state !== 'drained') return null
  return { podName: pod.name, nodeId: pod.node.nodeId, sinceMs: seen.nowMs }
}

function explainUnschedulable(state: GroupState, seen: Observation): { told: ReadonlySet<string>; actions: Action[] } {
  const stuck = seen.pods.filter(
    ({ unschedulable }) => unschedulable !== null && seen.nowMs - unschedulable.sinceMs >= unschedulableAfterMs,
  )
  const told = new Set(
    [...state.told].filter((key) => !key.startsWith('pod/') || stuck.some(({ name }) => key === `pod/${name}`)),
  )
  const actions: Action[] = []
  for (const { name, unschedulable } of stuck) {
    if (told.has(`pod/${name}`)) continue
    told.add(`pod/${name}`)
    const message = `${name} finds no node: ${unschedulable?.why ?? 'unknown'}; add nodes, ask for less, or lower the maximum`
    actions.push(explain('Warning', 'Unschedulable', message))
  }
  return { told, actions }
}

function lastPod(seen: Observation): ExpertPod | undefined {
  return seen.pods.reduce<ExpertPod | undefined>(
    (last, pod) => (last === undefined || pod.ordinal > last.ordinal ? pod : last),
    undefined,
  )
}

function tellOnce(state: GroupState, key: string, explanation: Explanation): Decision {
  if (state.told.has(key)) return { state, actions: [] }
  return { state: { ...state, told: new Set([...state.told, key]) }, actions: [{ kind: 'explain', explanation }] }
}

function forget(state: GroupState, key: string): GroupState {
  if (!state.told.has(key)) return state
  return { ...state, told: new Set([...state.told].filter((each) => each !== key)) }
}

function atMaximum(group: ScaledGroup, why: string): Explanation {
  return { type: 'Warning', reason: 'AtMaximum', message: `${group.maxReplicas} pods are the maximum, and ${why}` }
}

function explain(type: Explanation['type'], reason: Explanation['reason'], message: string): Action {
  return { kind: 'explain', explanation: { type, reason, message } }
}

function lasted(sinceMs: number | null, seconds: number, nowMs: number): boolean {
  return sinceMs !== null && nowMs - sinceMs >= seconds * 1000
}

function percent(part: number): string {
  return `${Math.round(part * 100)} %`
}
