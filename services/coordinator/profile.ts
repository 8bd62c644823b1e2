import type { ExpertHost } from '../expert/host.ts'
import { type ModelSpec, moeLayers } from '../model/spec.ts'
import type { ModelEngine } from './model-engine.ts'
import { namedPhases, type StepKind, type StepTotals, stepKinds } from './step-counters.ts'

/** Where the time of a coordinator's steps has gone since it started; ms. */
export type Profile = {
  coordinator: string
  threads: number
  layers: number
  moeLayers: number
  steps: StepProfile[]
  /** Of layers with one row: dispatch and combine beyond the experts' computing. Buckets that counted something. */
  oneRowOverhead: { fromMs: number; toMs: number; count: number }[]
  /** Where the experts compute in this process: all ranks together, and of that inside ONNX Runtime. */
  ranks: { computeMs: number; runtimeMs: number } | null
}

export type StepProfile = Omit<StepTotals, 'phaseMs' | 'runtimeMs'> & {
  kind: StepKind
  phases: { name: string; ms: number; runtimeMs: number }[]
}

export function readProfile(
  coordinator: string,
  spec: ModelSpec,
  { steps }: ModelEngine,
  host: Pick<ExpertHost, 'computedMs' | 'runtimeMs'> | null,
): Profile {
  const { counts, bounds } = steps.oneRowOverhead
  return {
    coordinator,
    threads: steps.threads,
    layers: spec.layers.length,
    moeLayers: moeLayers(spec).length,
    steps: stepKinds.map((kind) => {
      const { phaseMs: _, runtimeMs: __, ...totals } = steps.totals[kind]
      return { kind, ...totals, phases: namedPhases(steps.totals[kind]) }
    }),
    oneRowOverhead: Array.from(counts, (count, index) => ({
      fromMs: bounds[index - 1] ?? 0,
      // What is beyond the last bound counts as the last.
      toMs: bounds[index] ?? bounds.at(-1) ?? 0,
      count,
    })).filter(({ count }) => count > 0),
    ranks: host && { computeMs: host.computedMs(), runtimeMs: host.runtimeMs() },
  }
}
