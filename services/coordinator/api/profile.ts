import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import type { ClusterView } from '../cluster-view.ts'
import type { Profile } from '../profile.ts'
import { type ReportDefect, unary } from './failure.ts'

/** moesh.v1.Profiling: the counters of this coordinator's steps. */
export function profilingHandlers(
  view: Pick<ClusterView, 'getProfile'>,
  report: ReportDefect,
): UntypedServiceImplementation {
  return { GetProfile: unary('GetProfile', report, () => profileMessage(view.getProfile())) }
}

function profileMessage({ coordinator, threads, layers, moeLayers, steps, oneRowOverhead, ranks }: Profile): object {
  return {
    coordinator,
    threads,
    layers,
    moe_layers: moeLayers,
    steps: steps.map((step) => ({
      kind: step.kind,
      steps: step.steps,
      sequences: step.sequences,
      rows: step.rows,
      dispatches: step.dispatches,
      seconds: step.wallMs / 1000,
      team_seconds: step.teamMs / 1000,
      head_seconds: step.headMs / 1000,
      dispatch_seconds: step.dispatchMs / 1000,
      expert_seconds: step.expertMs / 1000,
      inside_seconds: step.insideMs / 1000,
      phases: step.phases.map(({ name, ms, runtimeMs }) => ({
        name,
        seconds: ms / 1000,
        runtime_seconds: runtimeMs / 1000,
      })),
    })),
    one_row_overhead: oneRowOverhead.map(({ fromMs, toMs, count }) => ({
      from_seconds: fromMs / 1000,
      to_seconds: toMs / 1000,
      count,
    })),
    ...(ranks && {
      ranks: { compute_seconds: ranks.computeMs / 1000, runtime_seconds: ranks.runtimeMs / 1000 },
    }),
  }
}
