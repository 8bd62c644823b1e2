import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import type { OptionsOf } from '../config/options.ts'
import type { RunningProcess } from '../config/process.ts'
import { serve } from '../coordinator/serve.ts'
import { defaultRanks } from '../expert/host.ts'
import { createLogger } from '../telemetry/log.ts'
import { formatCount } from './bytes.ts'
import { ApiClient } from './client.ts'
import { speed } from './generate.ts'
import { runGeneration } from './generation.ts'
import { cacheDirectory, preparePack } from './model.ts'
import { runProcess } from './process.ts'
import { table } from './table.ts'

/** Three ranks show experts at work in several places, on any machine; the demo model needs no more. */
const demoRanks = 3

/** `moesh serve [MODEL]`. Returns the exit status. */
export async function runServe(options: OptionsOf<'serve'>): Promise<number> {
  const { logLevel, logFormat } = options
  if (options.store !== 'memory:') {
    throw new MoeshError(
      'USAGE',
      `moesh serve is a cluster of its own and keeps its facts in memory, not in ${options.store}`,
      'leave --store (or MOESH_STORE) out, or start "moesh coordinator" and "moesh expert"',
    )
  }
  // On a terminal the page below says it all; a log in between would only disturb it.
  const level = process.stderr.isTTY && logLevel === 'info' ? 'warn' : logLevel
  const log = createLogger({ level, format: logFormat })
  const isDemo = options.model === undefined && options.provider === 'cpu' && !Array.isArray(options.cpus)
  const ranks = options.ranks ?? (isDemo ? demoRanks : defaultRanks(options.provider, options.cpus))
  return runProcess(
    options,
    log,
    async () =>
      serve({ ...options, ranks, cache: cacheDirectory(options.cache), pack: await preparePack(options) }, log),
    (running) => introduce(running, { ...options, ranks }),
  )
}

const modelSchema = z.object({
  id: z.string(),
  family: z.string(),
  weight_format: z.string(),
  parameters: z.string().transform(Number),
  active_parameters: z.string().transform(Number),
  license: z.string(),
  moe_layers: z.number(),
  experts: z.number(),
  experts_per_token: z.number(),
})

/** What runs here, a sample to show that it lives, and what to try next. */
async function introduce(running: RunningProcess, options: OptionsOf<'serve'> & { ranks: number }): Promise<void> {
  const client = await ApiClient.open({ ...options, server: running.grpc })
  try {
    const list = await client.call('moesh.v1.Inference/ListModels', {})
    const [model] = z.object({ models: z.array(modelSchema) }).parse(list).models
    if (model === undefined) return
    const experts =
      model.moe_layers === 0
        ? 'none'
        : `${model.moe_layers} layers of ${model.experts}, ${model.experts_per_token} for each token`
    process.stderr.write(
      `\n${table([
        [
          'model',
          `${model.id} (${model.family}), ${formatCount(model.parameters)} parameters, ${formatCount(model.active_parameters)} active per token`,
        ],
        ['licence', model.license],
        ['format', model.weight_format],
        ['experts', `${experts}, on ${options.ranks} ranks (${options.provider})`],
        ['gRPC', running.grpc],
      ])}\n`,
    )
    await sample(client)
    process.stderr.write(
      `\nTry, in another terminal:\n\n  bin/moesh generate "The old king" --server ${running.grpc}\n  bin/moesh status --server ${running.grpc}\n\nCtrl-C ends it.\n`,
    )
  } finally {
    client.close()
  }
}

async function sample(client: ApiClient): Promise<void> {
  const prompt = 'Once upon a time'
  try {
    process.stderr.write(`generating: ${prompt}`)
    const request = {
      request_id: randomUUID(),
      text: prompt,
      sampling: { seed: '1', max_tokens: 48 },
      output: { skip_special_tokens: true },
    }
    const result = await runGeneration(client, request, (text) => process.stderr.write(text))
    process.stderr.write(`\n(${speed(result)})\n`)
  } catch (thrown) {
    // A pack without a tokenizer serves token ids all the same.
    process.stderr.write(`: ${thrown instanceof Error ? thrown.message : String(thrown)}\n`)
  }
}
