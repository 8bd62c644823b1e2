import type { RoutingDispatcher } from '../dispatch/dispatcher.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { NodeStateName } from './cluster-view.ts'
import type { ModelEngine } from './model-engine.ts'
import { namedPhases, type StepTotals, stepKinds } from './step-counters.ts'

/** What a coordinator tells Prometheus, all of it read from counters that are kept anyway. */

export function addRequestMetrics(metrics: Metrics, { engine, counters }: ModelEngine): void {
  metrics.gauge('moesh_requests_running', 'Sequences that are computed.', () => engine.stats().running)
  metrics.gauge('moesh_requests_waiting', 'Sequences that wait for their turn.', () => engine.stats().queued)
  metrics.counter('moesh_requests_finished_total', 'Requests that ended as they should, by reason.', () =>
    Object.entries(counters.finished).map(([reason, value]) => ({ labels: { reason }, value })),
  )
  metrics.counter('moesh_requests_failed_total', 'Requests that ended with an error.', () => counters.failed)
  metrics.counter('moesh_requests_refused_total', 'Requests refused: the queue was full.', () => counters.refused)
  metrics.counter('moesh_preemptions_total', 'Sequences that gave up their KV cache.', () => counters.preempted)
  metrics.counter('moesh_prompt_tokens_total', 'Tokens of prompts.', () => counters.promptTokens)
  metrics.counter(
    'moesh_prompt_tokens_cached_total',
    'Of them, found in the KV cache instead of computed.',
    () => counters.cachedPromptTokens,
  )
  metrics.counter('moesh_generation_tokens_total', 'Tokens generated.', () => counters.generatedTokens)
  metrics.counter('moesh_guessed_tokens_total', 'Tokens computed on a guess.', () => counters.guessedTokens)
  metrics.counter('moesh_guessed_right_total', 'Of them, those that spared a step.', () => counters.guessedRight)
  metrics.histogram(
    'moesh_time_to_first_token_seconds',
    'From a request to its first token.',
    counters.timeToFirstToken,
  )
  metrics.histogram('moesh_inter_token_seconds', 'From a token of a stream to its next.', counters.interToken)
  metrics.gauge('moesh_kv_tokens', 'Tokens in the KV cache, of running requests.', () => engine.stats().kvTokensUsed)
  metrics.gauge(
    'moesh_kv_kept_tokens',
    'Tokens of ended requests that may be found.',
    () => engine.stats().kvTokensKept,
  )
  metrics.gauge('moesh_kv_tokens_limit', 'Room in the KV cache.', () => engine.stats().kvTokensMax)
}

export function addPrefixMetrics(metrics: Metrics, read: () => { fetchedTokens: number; sentTokens: number }): void {
  metrics.counter(
    'moesh_kv_fetched_tokens_total',
    'Tokens whose keys and values came from another coordinator.',
    () => read().fetchedTokens,
  )
  metrics.counter('moesh_kv_sent_tokens_total', 'Tokens whose keys and values went to one.', () => read().sentTokens)
}

export function addStepMetrics(metrics: Metrics, { steps }: ModelEngine): void {
  const byKind = (read: (totals: StepTotals) => number) => () =>
    stepKinds.map((kind) => ({ labels: { kind }, value: read(steps.totals[kind]) }))
  metrics.counter(
    'moesh_steps_total',
    'Steps: in decode every sequence goes on behind its last token, in prefill some read more.',
    byKind((it) => it.steps),
  )
  metrics.counter(
    'moesh_step_rows_total',
    'Rows of steps.',
    byKind((it) => it.rows),
  )
  metrics.counter(
    'moesh_step_seconds_total',
    'Time of steps.',
    byKind(({ wallMs }) => wallMs / 1000),
  )
  metrics.counter('moesh_step_phase_seconds_total', 'Time of steps by phase; the phases add up to the steps.', () =>
    stepKinds.flatMap((kind) =>
      stepParts(steps.totals[kind]).map(({ name: phase, ms }) => ({ labels: { kind, phase }, value: ms / 1000 })),
    ),
  )
  metrics.counter('moesh_step_runtime_seconds_total', "Of the team's phases, time inside compiled kernels.", () =>
    stepKinds.flatMap((kind) =>
      namedPhases(steps.totals[kind]).map(({ name: phase, runtimeMs }) => ({
        labels: { kind, phase },
        value: runtimeMs / 1000,
      })),
    ),
  )
}

/** All of a step's time: the team's phases, waking it, the experts, the way to them, and the loop itself. */
function stepParts(totals: StepTotals): { name: string; ms: number }[] {
  const { wallMs, teamMs, headMs, dispatchMs, expertMs } = totals
  const team = namedPhases(totals)
  const inside = team.reduce((sum, { ms }) => sum + ms, 0)
  return [
    // Experts are computed by the team or elsewhere.
    ...team.map(({ name, ms }) => ({ name, ms: name === 'expert' ? ms + expertMs : ms })),
    // Differences of clocks on two threads may be negative by their grain; a counter never falls.
    { name: 'wake', ms: Math.max(0, teamMs + headMs - inside) },
    { name: 'dispatch', ms: Math.max(0, dispatchMs - expertMs) },
    { name: 'loop', ms: Math.max(0, wallMs - teamMs - headMs - dispatchMs) },
  ]
}

export function addDispatchMetrics(metrics: Metrics, dispatcher: RoutingDispatcher): void {
  const byNode = (read: (stats: ReturnType<RoutingDispatcher['nodeStats']>) => number) => () =>
    dispatcher.routes().nodeIds.map((node) => ({ labels: { node }, value: read(dispatcher.nodeStats(node)) }))
  const stats = () => dispatcher.stats()
  metrics.counter('moesh_dispatches_total', 'Layers whose rows were sent to experts.', () => stats().dispatches)
  metrics.gauge('moesh_dispatches_running', 'Layers whose rows are on their way.', () => stats().running)
  metrics.counter(
    'moesh_dispatch_calls_total',
    'Calls that a node answered.',
    byNode((it) => it.calls),
  )
  metrics.counter(
    'moesh_dispatch_rows_total',
    'Rows that a node computed.',
    byNode((it) => it.rows),
  )
  metrics.counter(
    'moesh_dispatch_failures_total',
    'Calls that failed.',
    byNode((it) => it.failures),
  )
  metrics.counter(
    'moesh_dispatch_late_total',
    'Times that a node was late.',
    byNode((it) => it.late),
  )
  metrics.counter(
    'moesh_dispatch_retried_rows_total',
    'Rows sent again: a call failed, was refused or was late.',
    () => stats().retriedRows,
  )
  metrics.counter(
    'moesh_dispatch_hedged_rows_total',
    'Of these, rows sent again because a call was late.',
    () => stats().hedgedRows,
  )
  metrics.counter('moesh_audit_compared_total', 'Rows computed twice and compared.', () => stats().audited)
  metrics.counter('moesh_audit_mismatches_total', 'Of these, rows whose bits differed.', () => stats().auditsDiffering)
}

export type PlacementFacts = {
  epoch: number
  leads: boolean
  storeReachable: boolean
  nodes: readonly { role: 'COORDINATOR' | 'EXPERT'; state: NodeStateName }[]
  uncovered: number
  copiesMissing: number
  /** Nodes that this coordinator had suspended because of an audit. */
  suspensions: number
}

const nodeStates = ['JOINING', 'READY', 'LATE', 'DRAINING', 'DRAINED', 'SUSPENDED', 'LOST'] as const

/** The cluster as this coordinator sees it; nobody is asked. */
export function addPlacementMetrics(metrics: Metrics, facts: () => PlacementFacts): void {
  metrics.gauge('moesh_placement_epoch', 'Number of the placement in use.', () => facts().epoch)
  metrics.gauge('moesh_leader', '1 on the coordinator that leads.', () => Number(facts().leads))
  metrics.gauge('moesh_store_reachable', '1 while the store answers.', () => Number(facts().storeReachable))
  metrics.gauge('moesh_nodes', 'Nodes by role and state.', () => {
    const { nodes } = facts()
    // All states, also those of no node: an alert on what is absent never fires.
    return (['COORDINATOR', 'EXPERT'] as const).flatMap((role) =>
      nodeStates.map((state) => ({
        labels: { role: role.toLowerCase(), state: state.toLowerCase() },
        value: nodes.filter((node) => node.role === role && node.state === state).length,
      })),
    )
  })
  metrics.gauge('moesh_experts_uncovered', 'Experts without a live copy.', () => facts().uncovered)
  metrics.gauge('moesh_copies_missing', 'Live copies that experts lack of the wanted number.', () => {
    return facts().copiesMissing
  })
  metrics.counter('moesh_audit_suspensions_total', 'Nodes that this coordinator had suspended.', () => {
    return facts().suspensions
  })
}
