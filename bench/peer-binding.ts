import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { z } from 'zod'

/**
 * What the benchmark calls of llama.cpp through node-llama-cpp: the low-level batch interface below its sequences and
 * samplers, so that nothing but llama.cpp's own work is measured. Internal to the package, hence one exact version.
 */
export type LlamaContext = {
  init(): Promise<boolean>
  initBatch(tokens: number): void
  /** `logitIndexes`: for which of the tokens the head is computed. */
  addToBatch(sequence: number, firstPosition: number, tokens: Uint32Array, logitIndexes: Uint32Array): Uint32Array
  decodeBatch(): Promise<void>
  /** `logitIndex`: one of those that `addToBatch` returned. With probabilities, as [token, probability, …], first. */
  sampleToken(
    logitIndex: number,
    sampler: LlamaSampler,
    withProbabilities: true,
  ): Promise<[token: number, probabilities: number[]]>
  /** Positions `start` up to, not including, `end`; -1: all. */
  removeTokenCellsFromSequence(sequence: number, start: number, end: number): boolean
  disposeSequence(sequence: number): void
  setThreads(threads: number): void
  dispose(): Promise<void>
}
export type LlamaSampler = { applyConfig(config: { temperature: number }): void; dispose(): void }
export type LlamaModel = { init(): Promise<boolean>; dispose(): Promise<void> }

export type LlamaBinding = {
  AddonModel: new (path: string, options: { useMmap: boolean }) => LlamaModel
  AddonContext: new (
    model: LlamaModel,
    options: { contextSize: number; batchSize: number; sequences: number; threads: number; flashAttention: boolean },
  ) => LlamaContext
  AddonSampler: new (model: LlamaModel) => LlamaSampler
  systemInfo(): string
}

export const peerModules = join(import.meta.dirname, 'node_modules')
export const peerVersion = '3.22.1'

const newable = z.custom<LlamaBinding['AddonModel']>((value) => typeof value === 'function')
const bindingSchema = z.object({
  AddonModel: newable,
  AddonContext: newable,
  AddonSampler: newable,
  systemInfo: z.function(),
})

/** Loads the prebuilt CPU binary; never builds, never downloads. */
export async function loadBinding(): Promise<LlamaBinding> {
  const entry = join(peerModules, 'node-llama-cpp', 'dist', 'index.js')
  if (!existsSync(entry)) throw new Error(`${entry} is missing: "npm run bench" installs it`)
  const library: unknown = await import(pathToFileURL(entry).href)
  const { getLlama } = z.object({ getLlama: z.custom<GetLlama>((value) => typeof value === 'function') }).parse(library)
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    logLevel: 'error',
  })
  bindingSchema.parse(llama._bindings)
  return llama._bindings
}

type GetLlama = (options: {
  gpu: false
  build: 'never'
  skipDownload: boolean
  progressLogs: boolean
  logLevel: 'error'
}) => Promise<{ _bindings: LlamaBinding }>
