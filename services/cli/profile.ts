import { z } from 'zod'
import { quantile } from '../telemetry/histogram.ts'
import type { ApiClient } from './client.ts'
import { table } from './table.ts'

/** Where a token's time goes: the counters of a coordinator's steps, before and after a run. */

const count = z.string().transform(Number)

const stepsSchema = z.object({
  kind: z.string(),
  steps: count,
  sequences: count,
  rows: count,
  dispatches: count,
  seconds: z.number(),
  team_seconds: z.number(),
  head_seconds: z.number(),
  dispatch_seconds: z.number(),
  expert_seconds: z.number(),
  inside_seconds: z.number(),
  phases: z.array(z.object({ name: z.string(), seconds: z.number(), runtime_seconds: z.number() })),
})

const profileSchema = z.object({
  coordinator: z.string(),
  threads: z.number(),
  layers: z.number(),
  moe_layers: z.number(),
  steps: z.array(stepsSchema),
  one_row_overhead: z.array(z.object({ from_seconds: z.number(), to_seconds: z.number(), count })),
  ranks: z.object({ compute_seconds: z.number(), runtime_seconds: z.number() }).nullable(),
})

export type ProfileCounters = z.infer<typeof profileSchema>
type StepCounters = z.infer<typeof stepsSchema>

/** Errors: SERVER_REFUSED by a server without a profile. */
export async function readProfile(client: ApiClient): Promise<ProfileCounters> {
  return profileSchema.parse(await client.call('moesh.v1.Profiling/GetProfile', {}))
}

/** One line of the profile; the parts add up to the step. */
export type ProfilePart = {
  part: string
  ms_per_step: number
  /** null for what a step does once. */
  us_per_layer: number | null
  share: number
  /** Of the step, what of this part is outside kernels; null where that is not known: on other machines. */
  typescript_share: number | null
}

export type StepsProfile = {
  kind: string
  steps: number
  sequences_per_step: number
  rows_per_step: number
  ms_per_step: number
  parts: ProfilePart[]
  /** Of the step, what was neither inside a compiled kernel (ONNX Runtime's, attention's, sampling's) nor on the way to another process. */
  typescript_share: number
  /** Of the step, and of that share: threads that wait to be woken by each other, not code that runs. */
  handover_share: number
}

export type TokenProfile = {
  coordinator: string
  threads: number
  layers: number
  moe_layers: number
  /** Experts compute in the coordinator's process, over shared memory. */
  is_embedded: boolean
  kinds: StepsProfile[]
  /** Of layers with one row, dispatch and combine beyond what the experts computed; null without such layers. */
  one_row_overhead_ms: { p50: number; p90: number; p99: number; layers: number } | null
}

/** What happened between two answers of one coordinator; kinds of steps that did not happen are left out. */
export function tokenProfile(before: ProfileCounters, after: ProfileCounters): TokenProfile {
  const { coordinator, threads, layers, moe_layers } = after
  const ranks = {
    compute: (after.ranks?.compute_seconds ?? 0) - (before.ranks?.compute_seconds ?? 0),
    runtime: (after.ranks?.runtime_seconds ?? 0) - (before.ranks?.runtime_seconds ?? 0),
  }
  // What another machine's ranks do is not seen from here: all that they compute counts as inside.
  const expertInside = after.ranks === null || ranks.compute <= 0 ? null : Math.min(1, ranks.runtime / ranks.compute)
  const kinds = after.steps.flatMap((end) => {
    const start = before.steps.find(({ kind }) => kind === end.kind)
    const steps = start === undefined ? end : difference(start, end)
    return steps.steps === 0 ? [] : [stepsProfile(steps, after, expertInside)]
  })
  return {
    coordinator,
    threads,
    layers,
    moe_layers,
    is_embedded: after.ranks !== null,
    kinds,
    one_row_overhead_ms: overhead(before, after),
  }
}

function difference(start: StepCounters, end: StepCounters): StepCounters {
  const phaseBefore = new Map(start.phases.map((phase) => [phase.name, phase]))
  return {
    kind: end.kind,
    steps: end.steps - start.steps,
    sequences: end.sequences - start.sequences,
    rows: end.rows - start.rows,
    dispatches: end.dispatches - start.dispatches,
    seconds: end.seconds - start.seconds,
    team_seconds: end.team_seconds - start.team_seconds,
    head_seconds: end.head_seconds - start.head_seconds,
    dispatch_seconds: end.dispatch_seconds - start.dispatch_seconds,
    expert_seconds: end.expert_seconds - start.expert_seconds,
    inside_seconds: end.inside_seconds - start.inside_seconds,
    phases: end.phases.map(({ name, seconds, runtime_seconds }) => ({
      name,
      seconds: seconds - (phaseBefore.get(name)?.seconds ?? 0),
      runtime_seconds: runtime_seconds - (phaseBefore.get(name)?.runtime_seconds ?? 0),
    })),
  }
}

/** On the team's own threads or elsewhere, never both. */
const expertPart = 'experts compute'

/** Phases of the team by what people call them; `times`: in how many layers of a step each comes. */
const phaseNames: Readonly<Record<string, { part: string; times: 'all' | 'moe' | 'dense' | 'once' }>> = {
  embed: { part: 'embedding', times: 'once' },
  qkv: { part: 'qkv', times: 'all' },
  attention: { part: 'attention', times: 'all' },
  output: { part: 'output projection', times: 'all' },
  router: { part: 'router', times: 'moe' },
  expert: { part: expertPart, times: 'moe' },
  combine: { part: 'combine', times: 'moe' },
  dense: { part: 'dense layers', times: 'dense' },
  head: { part: 'head', times: 'once' },
  sampling: { part: 'sampling', times: 'once' },
  waiting: { part: 'threads wait for each other', times: 'all' },
}

function stepsProfile(
  steps: StepCounters,
  { layers, moe_layers, ranks }: ProfileCounters,
  expertInside: number | null,
): StepsProfile {
  const seconds = Math.max(steps.seconds, Number.MIN_VALUE)
  const times = { all: layers, moe: moe_layers, dense: layers - moe_layers, once: null }
  const part = (name: string, spent: number, layerCount: number | null, outside: number | null): ProfilePart => ({
    part: name,
    ms_per_step: (spent / steps.steps) * 1000,
    us_per_layer: layerCount ? (spent / steps.steps / layerCount) * 1e6 : null,
    share: spent / seconds,
    typescript_share: outside === null ? null : Math.max(0, outside) / seconds,
  })
  const { team_seconds, head_seconds, dispatch_seconds, expert_seconds } = steps
  const team = teamParts(steps)
  const inPhases = steps.phases.reduce((sum, phase) => sum + phase.seconds, 0)
  const wake = team_seconds + head_seconds - inPhases
  const way = dispatch_seconds - expert_seconds
  const loop = steps.seconds - team_seconds - head_seconds - dispatch_seconds
  const expertOutside = ranks === null ? null : expert_seconds * (1 - (expertInside ?? 1))
  const parts = [
    ...team.map(({ name, spent, outside }) => {
      const known = phaseNames[name] ?? { part: name, times: 'once' }
      return part(known.part, spent, times[known.times], outside)
    }),
    part('waking the threads', wake, null, wake),
    part('dispatch beyond computing', way, moe_layers, ranks === null ? null : way),
    part(expertPart, expert_seconds, moe_layers, expertOutside),
    part('schedule and hand out', loop, null, loop),
  ].filter(({ ms_per_step }) => ms_per_step !== 0)
  const waiting = team.find(({ name }) => name === 'waiting')?.outside ?? 0
  return {
    kind: steps.kind,
    steps: steps.steps,
    sequences_per_step: steps.sequences / steps.steps,
    rows_per_step: steps.rows / steps.steps,
    ms_per_step: (steps.seconds / steps.steps) * 1000,
    parts,
    typescript_share: parts.reduce((sum, it) => sum + (it.typescript_share ?? 0), 0),
    handover_share: Math.max(0, waiting + wake + (ranks === null ? 0 : way)) / seconds,
  }
}

/**
 * A phase's time is the mean of the threads, but while any thread is inside a kernel the step is: so of the time that
 * threads wait for each other only what is left over counts as outside.
 */
function teamParts({ phases, inside_seconds }: StepCounters): { name: string; spent: number; outside: number }[] {
  const outsideOf = (phase: StepCounters['phases'][number]) => Math.max(0, phase.seconds - phase.runtime_seconds)
  let left = -inside_seconds
  for (const phase of phases) left += phase.name === 'waiting' ? phase.seconds : phase.seconds - outsideOf(phase)
  return phases.map((phase) => ({
    name: phase.name,
    spent: phase.seconds,
    outside: phase.name === 'waiting' ? Math.max(0, left) : outsideOf(phase),
  }))
}

function overhead(before: ProfileCounters, after: ProfileCounters): TokenProfile['one_row_overhead_ms'] {
  const counted = new Map(before.one_row_overhead.map((bucket) => [bucket.to_seconds, bucket.count]))
  const buckets = after.one_row_overhead.map(({ from_seconds, to_seconds, count: total }) => ({
    lower: from_seconds * 1000,
    upper: to_seconds * 1000,
    count: total - (counted.get(to_seconds) ?? 0),
  }))
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((share) => quantile(buckets, share))
  if (p50 == null || p90 == null || p99 == null) return null
  return { p50, p90, p99, layers: buckets.reduce((sum, bucket) => sum + bucket.count, 0) }
}

export function profileText(profile: TokenProfile): string {
  const percent = (share: number) => `${(share * 100).toFixed(1)} %`
  const sections = profile.kinds.map((kind) => {
    const title = `${kind.kind}: ${kind.steps} steps, each ${kind.ms_per_step.toFixed(2)} ms for ${kind.rows_per_step.toFixed(1)} rows of ${kind.sequences_per_step.toFixed(1)} sequences\n`
    const rows = kind.parts.map((it) => [
      it.part,
      it.ms_per_step.toFixed(3),
      it.us_per_layer === null ? '' : it.us_per_layer.toFixed(0),
      percent(it.share),
      it.typescript_share === null ? '?' : percent(it.typescript_share),
    ])
    const header = ['part', 'ms/step', 'us/layer', 'of the step', 'outside kernels']
    const without = profile.is_embedded ? '' : ', the way to the experts and their computing'
    const share = `TypeScript, all but compiled kernels${without}: ${percent(kind.typescript_share)}`
    const handover = `of it threads handing over to each other: ${percent(kind.handover_share)}`
    return `${title}${table([header, ...rows])}${share}; ${handover}\n`
  })
  const { one_row_overhead_ms: one } = profile
  if (one !== null) {
    const values = [one.p50, one.p90, one.p99].map((ms) => ms.toFixed(3)).join(' / ')
    sections.push(
      `dispatch and combine beyond the experts' computing, one row, ms a layer (p50 / p90 / p99 of ${one.layers}): ${values}\n`,
    )
  }
  return sections.join('\n')
}
