import { createHash } from 'node:crypto'
import type { Dispatcher } from '../dispatch/transport.ts'
import type { PackReader } from '../pack/reader.ts'
import { coordinatorNumerics } from '../runtime/canary.ts'
import { saturatesInt8 } from '../runtime/probe.ts'
import type { CapacitySettings } from './capacity.ts'
import { engineCapacity } from './capacity.ts'
import { createEngine } from './engine.ts'
import type { Engine } from './request.ts'
import type { Phase } from './team/layout.ts'
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
  /** ms per phase of the forward pass since the start. */
  profile(): Record<Phase, number>
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
  const engine = createEngine({
    spec,
    team,
    dispatcher,
    limits,
    topMax,
    headRowsMax,
    nowMs: () => performance.now(),
  })
  return {
    engine,
    numerics,
    profile: () => team.profile(),
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
