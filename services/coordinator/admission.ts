import { MoeshError } from '../config/errors.ts'
import type { Engine, EngineRequest } from './request.ts'

export type AdmissionLimits = {
  engine: Engine['limits']
  vocabulary: number
  /** Most alternatives that log-probabilities may name. */
  topMax: number
}

/** What the engine asks of any request, whoever sends it. Errors: INVALID_ARGUMENT, naming what and what is allowed. */
export function checkRequest(request: EngineRequest, { engine, vocabulary, topMax }: AdmissionLimits): void {
  const { promptIds, output, sampling, candidates } = request
  const invalid = (message: string, hint: string) => new MoeshError('INVALID_ARGUMENT', message, hint)
  if (promptIds.length === 0) throw invalid('the prompt is empty', 'it needs at least one token')
  for (const id of promptIds) {
    if (!Number.isInteger(id) || id < 0 || id >= vocabulary) {
      throw invalid(`token_ids: ${id} is not in the vocabulary`, `ids are 0 … ${vocabulary - 1}`)
    }
  }
  const needed = promptIds.length + (sampling.maxTokens > 0 ? 1 : 0)
  if (needed > engine.contextLength) {
    throw invalid(
      `the prompt has ${promptIds.length} tokens, the context ${engine.contextLength}`,
      'shorten the prompt',
    )
  }
  for (const wanted of [output.logprobs, output.promptLogprobs]) {
    if (wanted !== null && (wanted < -1 || wanted > topMax)) {
      throw invalid(`logprobs: ${wanted} alternatives`, `allowed are -1 (the whole vocabulary) and 0 … ${topMax}`)
    }
  }
  if (candidates < 1 || candidates > engine.maxSequences) {
    throw invalid(`n: ${candidates} candidates`, `allowed are 1 … ${engine.maxSequences}`)
  }
}
