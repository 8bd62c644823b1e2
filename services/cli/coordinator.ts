import { MoeshError } from '../config/errors.ts'
import type { OptionsOf } from '../config/options.ts'
import { startCoordinator } from '../coordinator/coordinator.ts'
import { createLogger } from '../telemetry/log.ts'
import { cacheDirectory, preparePack } from './model.ts'
import { runProcess } from './process.ts'

/** `moesh coordinator --model PACK`. Returns the exit status. */
export async function runCoordinator(options: OptionsOf<'coordinator'>): Promise<number> {
  if (options.model === undefined) {
    throw new MoeshError('USAGE', 'moesh coordinator: --model is missing', 'name the pack to serve: --model PACK')
  }
  if (options.store === 'memory:') {
    throw new MoeshError('USAGE', '--store memory: is for one process alone', 'use "moesh serve", or --store redis://…')
  }
  const log = createLogger({ level: options.logLevel, format: options.logFormat })
  return runProcess(options, log, async () =>
    startCoordinator({ ...options, cache: cacheDirectory(options.cache), pack: await preparePack(options) }, log),
  )
}
