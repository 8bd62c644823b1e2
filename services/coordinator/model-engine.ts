import { createHash } from 'node:crypto'
import type { Dispatcher } from '../dispatch/transport.ts'
import type { PackReader } from '../pack/reader.ts'
import { coordinatorNumerics } from '../runtime/canary.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import type { CapacitySettings } from './capacity.ts'
import { engineCapacity } from './capacity.ts'
import { createEngine } from './engine.ts'
import type { Engine } from './request.ts'
import { RequestCounters } from './request-counters.ts'
import { StepCounters } from './step-counters.ts'
import { Team } from './team/team.ts'

export type ModelEngineOptions = CapacitySettings & {
  pack: PackReader
  dispatcher: Dispatcher
  threads: number
  stageDir: string
}

/** The coordinator's own share of a model, loaded, with the step loop over it. */
export type ModelEngine = {
  engine: Engine
  /** Class of coordinators that compute equal bits. */
  numerics: string
  steps: StepCounters
  counters: RequestCounters
  close(): Promise<void>
}

/** Alternatives that log-probabilities may name for a token; clients of other servers ask for 20 at most. */
const topMax = 128
/** Rows whose logits are held at once. */
const headRowsMax = 32

export async function startModelEngine(options: ModelEngineOptions): Promise<ModelEngine> {
  const { pack, dispatcher, threads, stageDir } = options
  const { spec, weightFormat: format } = pack.manifest
  const limits = engineCapacity(spec, options, process.availableMemory())
  const avoidSaturation = saturatesInt8(stageDir)
  const numerics = coordinatorNumerics({ stageDir, provider: 'cpu', avoidSaturation, format })
  const team = await Team.start({
    spec,
    format,
    packDir: pack.dir,
    stageDir,
    avoidSaturation,
    limits: { threads, rowsMax: limits.maxBatchTokens, itemsMax: limits.maxSequences, headRowsMax, topMax },
  })
  const nowMs = () => performance.now()
  const steps = new StepCounters(team.buffers, threads, nowMs)
  const counters = new RequestCounters()
  const engine = createEngine({
    spec,
    team,
    dispatcher,
    limits,
    topMax,
    headRowsMax,
    steps,
    counters,
    nowMs,
  })
  return {
    engine,
    numerics,
    steps,
    counters,
    close: async () => {
      await engine.close()
      await team.close()
    },
  }
}

/** Names everything that output bits depend on. */
export function fingerprint(packDigest: string, coordinatorClass: string, expertClass: string): string {
  return createHash('sha256').update(`${packDigest}\n${coordinatorClass}\n${expertClass}`).digest('hex').slice(0, 32)
}
