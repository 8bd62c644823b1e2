import { MoeshError } from '../../config/errors.ts'
import { moeLayers } from '../../model/spec.ts'
import type { Manifest } from '../../pack/manifest.ts'
import type { TextTokenizer } from '../../tokenizer/tokenizer.ts'
import type { Engine, EngineRequest } from '../request.ts'
import type { ModelMessage } from './wire.ts'

/** What the API needs of a tokenizer; `TextTokenizer` is one. */
export type TextModel = Pick<
  TextTokenizer,
  'encode' | 'encodeWithOffsets' | 'decode' | 'renderChat' | 'createTextStream'
>

/** A model that this coordinator answers for. */
export type ServedModel = {
  manifest: Manifest
  /** SHA-256 of the manifest file. */
  digest: string
  /** Names all that output bits depend on: weights, format, numerics. */
  fingerprint: string
  engine: Engine
  /** What is worth waiting for before a request is submitted: null if nothing is. Never rejects. */
  prepare?: (request: EngineRequest, signal: AbortSignal) => Promise<void> | null
  /** null: the pack has none, so only token ids go in and out. */
  text: TextModel | null
}

/** Grows and shrinks while the process runs: a model is in it while its engine takes requests. */
export type ServedModels = () => readonly ServedModel[]

/**
 * By id as `ListModels` gives it; empty: the only one.
 * Errors: STARTING (none yet), MODEL_AMBIGUOUS, MODEL_UNKNOWN.
 */
export function findModel(models: readonly ServedModel[], id: string): ServedModel {
  const [first, ...others] = models
  if (first === undefined) {
    throw new MoeshError('STARTING', 'no model is ready on this coordinator yet', 'try again in a moment')
  }
  const known = models.map(({ manifest }) => manifest.name).join(', ')
  if (id === '') {
    if (others.length === 0) return first
    throw new MoeshError('MODEL_AMBIGUOUS', 'model is empty and several are served', `choose one of ${known}`)
  }
  const found = models.find(({ manifest }) => manifest.name === id)
  if (found === undefined)
    throw new MoeshError('MODEL_UNKNOWN', `model "${id}" is not served here`, `there is ${known}`)
  return found
}

/** Errors: INVALID_ARGUMENT where the pack has no tokenizer. */
export function textOf(model: ServedModel, field: string): TextModel {
  if (model.text !== null) return model.text
  throw new MoeshError('INVALID_ARGUMENT', `${field}: ${model.manifest.name} has no tokenizer`, 'use token ids')
}

export function describeModel({ manifest, digest, fingerprint, engine }: ServedModel): ModelMessage {
  const { spec } = manifest
  const routed = moeLayers(spec)
  return {
    id: manifest.name,
    digest,
    family: spec.family,
    weight_format: manifest.weightFormat,
    parameters: manifest.parameters.total,
    active_parameters: manifest.parameters.active,
    context_length: engine.limits.contextLength,
    vocabulary: spec.vocabulary,
    layers: spec.layers.length,
    moe_layers: routed.length,
    experts: routed[0]?.ffn.experts ?? 0,
    experts_per_token: routed[0]?.ffn.expertsPerToken ?? 0,
    license: manifest.license,
    source: manifest.source,
    fingerprint,
    base: '',
    chat_template: manifest.chatTemplate ?? '',
  }
}
