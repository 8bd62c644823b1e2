import { randomUUID } from 'node:crypto'
import type { OptionsOf } from '../config/options.ts'
import { createLogger } from '../telemetry/log.ts'
import { ApiClient } from './client.ts'
import { type GenerationResult, runGeneration } from './generation.ts'
import { preparePack } from './model.ts'

/** `moesh generate PROMPT`: the text to stdout as it comes, how fast it was to stderr. Returns the exit status. */
export async function runGenerate(
  prompt: string,
  options: OptionsOf<'generate'>,
  signal: AbortSignal,
): Promise<number> {
  const { client, close } = await open(options, signal)
  try {
    const showsText = !options.json
    if (showsText && process.stdout.isTTY && !options.chat) process.stdout.write(prompt)
    const result = await runGeneration(
      client,
      requestOf(prompt, options),
      (text) => {
        if (showsText) process.stdout.write(text)
      },
      signal,
    )
    if (options.json) process.stdout.write(`${JSON.stringify(document(result))}\n`)
    else process.stdout.write('\n')
    process.stderr.write(`${speed(result)}\n`)
    return 0
  } catch (thrown) {
    if (!signal.aborted) throw thrown
    process.stderr.write('\ninterrupted\n')
    return 1
  } finally {
    await close()
  }
}

async function open(options: OptionsOf<'generate'>, signal: AbortSignal) {
  const { server } = options
  if (server !== undefined) {
    const client = await ApiClient.open({ ...options, server })
    return { client, close: async () => client.close() }
  }
  const pack = await preparePack(options, signal)
  const { openLocal } = await import('./local.ts')
  return openLocal(pack, { ...options, log: createLogger({ level: options.logLevel, format: options.logFormat }) })
}

function requestOf(prompt: string, options: OptionsOf<'generate'>) {
  const given = {
    temperature: options.temperature,
    top_p: options.topP,
    top_k: options.topK,
    min_p: options.minP,
    seed: options.seed === undefined ? undefined : String(options.seed),
    max_tokens: options.maxTokens,
  }
  const sampling = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
  return {
    request_id: randomUUID(),
    ...(options.chat ? { chat: { messages: [{ role: 'user', content: prompt }] } } : { text: prompt }),
    sampling: { ...sampling, stop: options.stop ?? [] },
    output: { skip_special_tokens: true },
  }
}

function document({ prompt, ids, text, finish, usage }: GenerationResult): object {
  const { model, fingerprint, seed, token_ids } = prompt
  return { model, fingerprint, seed, prompt_token_ids: token_ids, token_ids: ids, text, finish, usage }
}

/** `48 tokens in 0.61 s: 84.2 tokens/s, first after 40 ms`; the rate is that of the tokens after the first. */
export function speed({ usage }: Pick<GenerationResult, 'usage'>): string {
  const { output_tokens: tokens, total_seconds: seconds, time_to_first_token_seconds: first } = usage
  const decodeSeconds = seconds - first
  const rate = tokens > 1 && decodeSeconds > 0 ? ` ${((tokens - 1) / decodeSeconds).toFixed(1)} tokens/s,` : ''
  const resumed = usage.resumed > 0 ? `, resumed ${usage.resumed} times` : ''
  return `${tokens} tokens in ${seconds.toFixed(2)} s:${rate} first after ${(first * 1000).toFixed(0)} ms${resumed}`
}
