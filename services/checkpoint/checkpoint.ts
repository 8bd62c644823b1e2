import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { MoeshError } from '../config/errors.ts'
import { type PublishedConfig, type PublishedModel, publishedModel } from '../model/family.ts'
import { readConfig } from './config.ts'
import { type GenerationDefaults, readGeneration } from './generation.ts'
import { readTextFile } from './json-file.ts'
import { findLicense, type LicenseInfo, readModelCard } from './license.ts'
import { findTokenizerFiles, type TokenizerFiles } from './tokenizer-files.ts'
import { openWeights, type Weights } from './weights.ts'

/** A published checkpoint: a directory of weights, configurations, a tokenizer and a model card, open for reading. */
export type Checkpoint = {
  directory: string
  /** The directory's name. */
  name: string
  config: PublishedConfig
  model: PublishedModel
  weights: Weights
  generation: GenerationDefaults['sampling']
  tokenizer: TokenizerFiles
  license: LicenseInfo
  /** Where the weights came from, as far as the checkpoint says. */
  source: string
  /** What else is known of its origin, for a manifest: nothing in it depends on this machine. */
  provenance: Record<string, unknown>
  /** Same content, same digest, judged without reading the weights: headers, sizes and small files. */
  contentFingerprint: string
  /** As `contentFingerprint`, with the times of the files: it changes when a file is written again. */
  fingerprint: string
  close(): void
}

/** Opens a checkpoint directory. Throws CHECKPOINT_INVALID or MODEL_UNSUPPORTED. */
export function openCheckpoint(directory: string): Checkpoint {
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new MoeshError('CHECKPOINT_INVALID', `${directory} is not a directory`, 'name the directory of a checkpoint')
  }
  const config = readConfig(directory)
  const model = publishedModel(config)
  const generation = readGeneration(directory)
  const tokenizer = findTokenizerFiles(directory)
  const card = readModelCard(directory)
  const weights = openWeights(directory)
  const name = basename(resolve(directory))
  return {
    directory,
    name,
    config,
    model: withGeneration(model, generation),
    weights,
    generation: generation.sampling,
    tokenizer,
    license: findLicense(directory, card, config.values),
    source: sourceOf(config, name),
    provenance: provenanceOf(config, weights, card.base_model ?? null),
    contentFingerprint: fingerprint(directory, weights, false),
    fingerprint: fingerprint(directory, weights, true),
    close: () => weights.close(),
  }
}

/** Generation settings know the ends of a text better than config.json: chat models end at more than one token. */
function withGeneration(model: PublishedModel, generation: GenerationDefaults): PublishedModel {
  const { spec } = model
  return {
    ...model,
    spec: {
      ...spec,
      eosTokenIds: generation.eosTokenIds ?? spec.eosTokenIds,
      bosTokenId: spec.bosTokenId ?? generation.bosTokenId,
    },
  }
}

function sourceOf(config: PublishedConfig, name: string): string {
  const said = config.values._name_or_path
  // Paths of the machine that saved it say nothing.
  return typeof said === 'string' && /^[\w.-]+\/[\w.-]+$/.test(said) ? said : name
}

function provenanceOf(config: PublishedConfig, weights: Weights, baseModel: unknown): Record<string, unknown> {
  const { values, architectures } = config
  return {
    architectures,
    dtype: values.dtype ?? values.torch_dtype ?? null,
    transformersVersion: values.transformers_version ?? null,
    baseModel,
    weights: weights.files.map(({ path, bytes, headerSha256 }) => ({ file: basename(path), bytes, headerSha256 })),
  }
}

const describingFiles = [
  'README.md',
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'chat_template.json',
]

function fingerprint(directory: string, weights: Weights, withTimes: boolean): string {
  const hash = createHash('sha256')
  for (const name of describingFiles) {
    const text = readTextFile(join(directory, name))
    hash.update(`${name}\0${text === undefined ? 'none' : createHash('sha256').update(text).digest('hex')}\0`)
  }
  for (const { path, bytes, modifiedMs, headerSha256 } of weights.files) {
    hash.update(`${basename(path)}\0${bytes}\0${headerSha256}\0${withTimes ? modifiedMs : ''}\0`)
  }
  return hash.digest('hex')
}
