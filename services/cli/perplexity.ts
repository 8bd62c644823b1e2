import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { tokenizeBytesMax } from '../config/limits.ts'
import type { ApiClient } from './client.ts'
import { runGeneration } from './generation.ts'

/** Windows that are scored at once: enough to fill the engine's steps. */
const inFlight = 8

export type Perplexity = { perplexity: number; tokens: number }

/**
 * Perplexity of a text: its first `tokens` ids (no special ones added) are cut into consecutive windows without overlap,
 * each is scored alone, all ids but its first, and the result is e to the mean negative log-likelihood. A last window
 * of a single id scores nothing. Errors: those of the server, INVALID_ARGUMENT for a text of fewer than two tokens.
 */
export async function perplexity(
  client: ApiClient,
  text: string,
  options: { window: number; tokens: number },
  onProgress: (windowsDone: number, windows: number) => void = () => {},
  signal?: AbortSignal,
): Promise<Perplexity> {
  const ids = (await tokenize(client, text)).slice(0, options.tokens)
  const windows: number[][] = []
  for (let start = 0; start + 1 < ids.length; start += options.window) {
    windows.push(ids.slice(start, start + options.window))
  }
  const scored = windows.filter((window) => window.length > 1)
  if (scored.length === 0) throw new MoeshError('INVALID_ARGUMENT', 'the text has fewer than two tokens')
  // Summed in the order of the text, whatever order the answers come in.
  const sums: number[] = Array.from({ length: scored.length }, () => 0)
  let next = 0
  let done = 0
  const worker = async () => {
    while (next < scored.length) {
      const index = next++
      sums[index] = await negativeLogLikelihood(client, scored[index] ?? [], signal)
      onProgress(++done, scored.length)
    }
  }
  await Promise.all(Array.from({ length: inFlight }, worker))
  const tokens = scored.reduce((sum, window) => sum + window.length - 1, 0)
  return { perplexity: Math.exp(sums.reduce((sum, value) => sum + value, 0) / tokens), tokens }
}

async function negativeLogLikelihood(client: ApiClient, ids: number[], signal?: AbortSignal): Promise<number> {
  const { prompt } = await runGeneration(
    client,
    {
      request_id: randomUUID(),
      token_ids: { ids },
      sampling: { max_tokens: 0 },
      output: { prompt_logprobs: 0, no_text: true },
    },
    () => {},
    signal,
  )
  let sum = 0
  for (const [index, token] of prompt.tokens.entries()) {
    if (index === 0) continue
    if (token.logprobs === null) throw new MoeshError('INTERNAL', `prompt token ${index} has no log-probability`)
    sum -= token.logprobs.chosen
  }
  return sum
}

async function tokenize(client: ApiClient, text: string): Promise<number[]> {
  const response = await client.call('moesh.v1.Inference/Tokenize', {
    text: beginning(text, tokenizeBytesMax),
    no_special_tokens: true,
  })
  return z.object({ ids: z.array(z.number()) }).parse(response).ids
}

/** The longest beginning of at most so many bytes that ends between characters. */
export function beginning(text: string, bytesMax: number): string {
  const bytes = Buffer.from(text)
  if (bytes.length <= bytesMax) return text
  let end = bytesMax
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end--
  return bytes.subarray(0, end).toString()
}
