import { MoeshError } from '../config/errors.ts'
import type { OptionsOf } from '../config/options.ts'
import { startExpertNode } from '../expert/node.ts'
import { looksLikePack } from '../pack/reader.ts'
import { createLogger } from '../telemetry/log.ts'
import { cacheDirectory } from './model.ts'
import { runProcess } from './process.ts'

/** `moesh expert`. Returns the exit status. */
export async function runExpert(options: OptionsOf<'expert'>): Promise<number> {
  if (options.store === 'memory:') {
    throw new MoeshError('USAGE', '--store memory: is for one process alone', 'use "moesh serve", or --store redis://…')
  }
  // A checkpoint holds no shards: then they come from the coordinators, which packed it.
  const pack = options.model !== undefined && looksLikePack(options.model) ? options.model : null
  const log = createLogger({ level: options.logLevel, format: options.logFormat })
  return runProcess(options, log, () =>
    startExpertNode({ ...options, cache: cacheDirectory(options.cache), pack }, log),
  )
}
