import { readOptions } from '../config/options.ts'
import type { ServeSettings } from '../config/process.ts'
import { serve } from '../coordinator/serve.ts'
import type { Logger } from '../telemetry/log.ts'
import { ApiClient } from './client.ts'
import { cacheDirectory } from './model.ts'

type LocalOptions = Pick<ServeSettings, 'provider'> & {
  ranks: number | undefined
  threads: number | undefined
  cache?: string | undefined
  log: Logger
}

/**
 * A model in this process, for one command, behind the same API as a cluster: on a free port of the loopback interface,
 * so that a command has one way to talk and the short way is tested with the long one.
 */
export async function openLocal(
  pack: string,
  { provider, ranks, threads, cache, log }: LocalOptions,
): Promise<{ client: ApiClient; close(): Promise<void> }> {
  // What the user's environment says is for servers: a listening address there is not meant for this.
  const defaults = readOptions('serve', [], {})
  if (defaults.kind === 'help') throw new TypeError('no arguments ask for no help')
  const settings: ServeSettings = {
    ...defaults.options,
    provider,
    ranks,
    threads,
    grpc: '127.0.0.1:0',
    cache: cacheDirectory(cache),
    pack,
  }
  const running = await serve(settings, log)
  await running.ready
  const client = await ApiClient.open({ server: running.grpc, tlsCert: undefined, tlsKey: undefined, tlsCa: undefined })
  return {
    client,
    close: async () => {
      client.close()
      await running.drain(AbortSignal.abort())
    },
  }
}
