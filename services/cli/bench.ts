import { writeFileSync } from 'node:fs'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import type { OptionsOf } from '../config/options.ts'
import { ApiClient } from './client.ts'
import { type LoadSamples, type LoadStep, runLoad } from './load.ts'
import { type LineChart, plotSvg } from './plot.ts'
import { profileText, readProfile, type TokenProfile, tokenProfile } from './profile.ts'
import { table } from './table.ts'

type Percentiles = { p50: number; p90: number; p99: number }

type BenchStep = {
  concurrency: number
  requests: number
  failed: number
  seconds: number
  output_tokens_per_second: number
  prompt_tokens_per_second: number
  requests_per_second: number
  time_to_first_token_ms: Percentiles
  /** Between a token and the next of the same stream; null where there is one token a request. */
  inter_token_ms: Percentiles | null
  /** Where its time went, with `--profile`: of all that its coordinator did meanwhile. */
  profile?: TokenProfile
}

/** What `--json` prints. */
export type BenchDocument = {
  server: string
  model: { id: string; weight_format: string; fingerprint: string }
  prompt_tokens: number
  max_tokens: number
  steps: BenchStep[]
}

/** So many requests for each that runs at once, where `--requests` does not say. */
const requestsPerConcurrency = 4

const modelsSchema = z.object({
  models: z.array(
    z.object({ id: z.string(), weight_format: z.string(), fingerprint: z.string(), vocabulary: z.number() }),
  ),
})

/**
 * `moesh bench`: throughput and latency of a running cluster over steps of concurrency. Errors: SERVER_UNREACHABLE,
 * SERVER_REFUSED where no request of a step was answered, FILE_UNWRITABLE.
 */
export async function runBench(options: OptionsOf<'bench'>, signal: AbortSignal): Promise<void> {
  const client = await ApiClient.open(options)
  try {
    const { models } = modelsSchema.parse(await client.call('moesh.v1.Inference/ListModels', {}))
    const [model] = models
    if (model === undefined) throw new MoeshError('SERVER_REFUSED', `${options.server} serves no model`)
    const { promptTokens, maxTokens } = options
    const base = { promptTokens, maxTokens, vocabulary: model.vocabulary }
    // The first request of all meets cold caches.
    await runLoad(client, { ...base, concurrency: 1, requests: 1 }, signal)
    const steps: BenchStep[] = []
    for (const concurrency of options.concurrency) {
      const requests = Math.max(concurrency, options.requests ?? requestsPerConcurrency * concurrency)
      process.stderr.write(`${requests} requests, ${concurrency} at once ...\n`)
      const step = { ...base, concurrency, requests }
      const before = options.profile ? await readProfile(client) : null
      const summary = summarise(step, await runLoad(client, step, signal))
      steps.push(before === null ? summary : { ...summary, profile: tokenProfile(before, await readProfile(client)) })
    }
    const { id, weight_format, fingerprint } = model
    const document: BenchDocument = {
      server: options.server,
      model: { id, weight_format, fingerprint },
      prompt_tokens: promptTokens,
      max_tokens: maxTokens,
      steps,
    }
    if (options.svg !== undefined) writeSvg(options.svg, document)
    process.stdout.write(options.json ? `${JSON.stringify(document)}\n` : benchText(document))
  } finally {
    client.close()
  }
}

function summarise(step: LoadStep, samples: LoadSamples): BenchStep {
  const { seconds, outputTokens, timesToFirstTokenMs, gapsMs, failures } = samples
  const answered = timesToFirstTokenMs.length
  const [failure] = failures
  if (answered === 0 && failure !== undefined) throw failure
  return {
    concurrency: step.concurrency,
    requests: step.requests,
    failed: failures.length,
    seconds,
    output_tokens_per_second: outputTokens / seconds,
    prompt_tokens_per_second: (answered * step.promptTokens) / seconds,
    requests_per_second: answered / seconds,
    time_to_first_token_ms: percentiles(timesToFirstTokenMs),
    inter_token_ms: gapsMs.length === 0 ? null : percentiles(gapsMs),
  }
}

/** Nearest rank: a value that occurred. */
export function percentiles(values: readonly number[]): Percentiles {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
}

export function benchText({ model, prompt_tokens, max_tokens, steps }: BenchDocument): string {
  const number = (value: number) => value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)
  const three = (values: Percentiles | null) =>
    values === null ? '' : [values.p50, values.p90, values.p99].map(number).join(' / ')
  const rows = steps.map((step) => [
    `${step.concurrency}`,
    `${step.requests}`,
    `${step.failed}`,
    number(step.output_tokens_per_second),
    number(step.prompt_tokens_per_second),
    number(step.requests_per_second),
    three(step.time_to_first_token_ms),
    three(step.inter_token_ms),
  ])
  const header = [
    'at once',
    'requests',
    'failed',
    'tokens/s',
    'prompt tokens/s',
    'requests/s',
    'first token, ms (p50 / p90 / p99)',
    'between tokens, ms (p50 / p90 / p99)',
  ]
  const title = `${model.id} (${model.weight_format}): prompts of ${prompt_tokens} tokens, ${max_tokens} generated\n\n`
  const profiles = steps.flatMap(({ concurrency, profile }) =>
    profile === undefined ? [] : [`\n${concurrency} at once, on ${profile.coordinator}\n\n${profileText(profile)}`],
  )
  return title + table([header, ...rows]) + profiles.join('')
}

export function benchCharts({ model, steps }: BenchDocument): LineChart[] {
  const xLabel = 'requests at once'
  const latency = (title: string, of: (step: BenchStep) => Percentiles | null): LineChart => ({
    title,
    xLabel,
    series: (['p50', 'p90', 'p99'] as const).map((name) => ({
      name,
      points: steps.flatMap((step) => {
        const y = of(step)?.[name]
        return y === undefined ? [] : [{ x: step.concurrency, y }]
      }),
    })),
  })
  const throughput = steps.map((step) => ({ x: step.concurrency, y: step.output_tokens_per_second }))
  return [
    { title: `${model.id}: tokens/s`, xLabel, series: [{ name: 'tokens/s', points: throughput }] },
    latency('time to first token, ms', (step) => step.time_to_first_token_ms),
    latency('between tokens, ms', (step) => step.inter_token_ms),
  ]
}

function writeSvg(file: string, document: BenchDocument): void {
  try {
    writeFileSync(file, plotSvg(benchCharts(document)))
  } catch (cause) {
    throw new MoeshError('FILE_UNWRITABLE', `--svg: ${file} cannot be written`, 'check its directory', { cause })
  }
}
