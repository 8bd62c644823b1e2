import { randomInt, randomUUID } from 'node:crypto'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import type { ApiClient } from './client.ts'

/** Requests at a fixed concurrency against a running cluster, and what a client sees of them. */

export type LoadStep = {
  concurrency: number
  requests: number
  promptTokens: number
  maxTokens: number
  /** Prompts are random token ids below it: no two of them share a prefix. */
  vocabulary: number
}

export type LoadSamples = {
  /** From the first request to the last answer. */
  seconds: number
  outputTokens: number
  /** One a request that was answered. */
  timesToFirstTokenMs: number[]
  /**
   * One a token after the first. Tokens that came in one message count as they came: the first waited, the others did
   * not.
   */
  gapsMs: number[]
  failures: MoeshError[]
}

/** A server that refuses some requests (a full queue) is measured by the others. Errors: SERVER_UNREACHABLE. */
export async function runLoad(client: ApiClient, step: LoadStep, signal: AbortSignal): Promise<LoadSamples> {
  const samples: LoadSamples = { seconds: 0, outputTokens: 0, timesToFirstTokenMs: [], gapsMs: [], failures: [] }
  let left = step.requests
  const startMs = performance.now()
  const worker = async () => {
    while (left > 0) {
      left--
      try {
        await oneRequest(client, step, samples, signal)
      } catch (thrown) {
        const isRefusal = thrown instanceof MoeshError && thrown.code === 'SERVER_REFUSED'
        if (!isRefusal || signal.aborted) throw thrown
        samples.failures.push(thrown)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(step.concurrency, step.requests) }, worker))
  samples.seconds = (performance.now() - startMs) / 1000
  return samples
}

const responseSchema = z.object({ delta: z.object({ tokens: z.array(z.unknown()) }).nullable() })

async function oneRequest(
  client: ApiClient,
  { promptTokens, maxTokens, vocabulary }: LoadStep,
  samples: LoadSamples,
  signal: AbortSignal,
): Promise<void> {
  const request = {
    request_id: randomUUID(),
    token_ids: { ids: Array.from({ length: promptTokens }, () => randomInt(vocabulary)) },
    // Drawn, since greedy continuations of random prompts repeat themselves.
    sampling: { temperature: 1, max_tokens: maxTokens, ignore_eos: true },
  }
  let lastMs = performance.now()
  let received = 0
  for await (const message of client.stream('moesh.v1.Inference/Generate', request, signal)) {
    const tokens = responseSchema.parse(message).delta?.tokens.length ?? 0
    if (tokens === 0) continue
    const nowMs = performance.now()
    for (let token = 0; token < tokens; token++) {
      const waitedMs = token === 0 ? nowMs - lastMs : 0
      if (received + token === 0) samples.timesToFirstTokenMs.push(waitedMs)
      else samples.gapsMs.push(waitedMs)
    }
    received += tokens
    lastMs = nowMs
  }
  samples.outputTokens += received
}
