import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { asMoeshError } from '../services/config/errors.ts'
import type { Weight } from '../services/graph/graph.ts'
import { expertGraph } from '../services/graph/layers.ts'
import type { LinearWeights } from '../services/graph/linear.ts'
import { linearParts, type WeightFormat, weightFormats } from '../services/model/format.ts'
import { paddedRows, productRows } from '../services/runtime/product-rows.ts'
import { createSession, type Feed, type Provider, release } from '../services/runtime/session.ts'
import { nextWord, streamFor, type XorshiftState } from './random.ts'
import { summarise } from './statistics.ts'

/**
 * `npm run bench:gpu`: rows a second through the experts of one OLMoE layer's share (8 of 64), a provider and a weight
 * format at a time. A row is one token's part for one expert: two matrices of 2048 × 2048 and 1024 × 2048. Rows go as ranks
 * give them, at most so many a product that a row's bits do not depend on others. Copies to and from the device are in
 * it. A provider that is not here, or that can't run a format, is said and left out.
 */

const hidden = 2048
const inner = 1024
const experts = 8
/** Rows of each expert in a call: a decode step of a few sequences, of many, a prompt. */
const rowCounts = [1, 4, 16, 64, 256]
const secondsPerCase = 2
const runsMin = 3

function randomWeight(state: XorshiftState, format: WeightFormat, inputs: number, outputs: number): LinearWeights {
  const weights: LinearWeights = { format, inputs, outputs, parts: {} }
  for (const { name, dtype, shape } of linearParts(format, inputs, outputs)) {
    const count = shape.reduce((product, size) => product * size, 1)
    const type = dtype === 'f32' ? 'f32' : dtype === 'i8' ? 'i8' : 'u8'
    const values = type === 'f32' ? new Float32Array(count) : new Uint8Array(count)
    const scale = type !== 'f32' ? 1 : name === 'scale' ? 1e-3 / 2 ** 32 : 0.05 / 2 ** 32
    for (let i = 0; i < count; i++) values[i] = nextWord(state) * scale
    const source: Weight['source'] = { kind: 'bytes', bytes: new Uint8Array(values.buffer) }
    weights.parts[name] = { type, shape, source }
  }
  return weights
}

function feeds(format: WeightFormat, rowsEach: number): Record<string, Feed> {
  const rows = rowsEach * experts
  const counts = new BigInt64Array(experts).fill(BigInt(rowsEach))
  const common = { counts: { dims: [experts], type: 'int64', data: counts, location: 'cpu' } } as const
  if (format === 'f32' || format === 'int4') {
    const data = Float32Array.from({ length: rows * hidden }, (_, i) => Math.sin(i))
    return { ...common, rows: { dims: [rows, hidden], type: 'float32', data, location: 'cpu' } }
  }
  const width = format === 'int8' ? 2 * hidden : hidden
  const data = Uint8Array.from({ length: rows * width }, (_, i) => i)
  const scales = new Float32Array(rows).fill(0.01)
  return {
    ...common,
    rows: { dims: [rows, width], type: 'uint8', data, location: 'cpu' },
    scales: { dims: [rows, 1], type: 'float32', data: scales, location: 'cpu' },
  }
}

function measure(provider: Provider, format: WeightFormat, stageDir: string): void {
  const state = streamFor(1, `${provider}/${format}`)
  const weights = Array.from({ length: experts }, () => ({
    gateUp: randomWeight(state, format, hidden, 2 * inner),
    down: randomWeight(state, format, inner, hidden),
  }))
  const graph = expertGraph(format, hidden, 'silu', weights)
  const session = createSession(graph, { stageDir, provider, avoidSaturation: false })
  try {
    const rule = productRows(provider, format, [hidden, inner])
    for (const rowsEach of rowCounts) {
      const input = feeds(format, paddedRows(Math.min(rowsEach, rule.max), rule))
      const calls = Math.ceil(rowsEach / rule.max)
      session.run(input) // compiles the device's programs
      const times: number[] = []
      const untilMs = performance.now() + secondsPerCase * 1000
      while (times.length < runsMin || performance.now() < untilMs) {
        const fromMs = performance.now()
        for (let call = 0; call < calls; call++) {
          for (const { data } of Object.values(session.run(input))) release(data)
        }
        times.push(performance.now() - fromMs)
      }
      const { median, min, max } = summarise(times)
      const rate = ((rowsEach * experts) / median) * 1000
      const spread = `${median.toFixed(2)} ms for ${calls === 1 ? 'one call' : `${calls} calls`}, ${min.toFixed(2)} to ${max.toFixed(2)}`
      console.log(`${provider}/${format}  ${rowsEach} rows an expert: ${rate.toFixed(0)} rows/s (${spread})`)
    }
  } finally {
    session.dispose()
  }
}

const stageDir = mkdtempSync(join(tmpdir(), 'moesh-bench-gpu-'))
try {
  for (const provider of ['webgpu', 'cuda'] as const) {
    for (const format of weightFormats) {
      try {
        measure(provider, format, stageDir)
      } catch (thrown) {
        console.log(`SKIPPED: ${provider}/${format}: ${asMoeshError(thrown).message}`)
      }
    }
  }
} finally {
  rmSync(stageDir, { recursive: true, force: true })
}
