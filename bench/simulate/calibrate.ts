import { closeSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { createOutputBuffer, createRowBuffer, rowEncoding } from '../../services/dispatch/rows.ts'
import type { ExpertHost, ShardSource } from '../../services/expert/host.ts'
import { createLocalHost } from '../../services/expert/local-host.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import { type ModelSpec, moeLayers } from '../../services/model/spec.ts'
import { shardLayout } from '../../services/model/tensors.ts'
import { nextWord, streamFor } from '../random.ts'
import type { BenchShape } from '../shape.ts'
import { summarise } from '../statistics.ts'
import { type CostSample, callMs, type ExpertCost, fitCost } from './cost.ts'
import { specOf } from './model.ts'

/**
 * What a call costs a real rank: the product's host with one thread and random weights, calls of different sizes in
 * turn. Which experts a call wants moves on from call to call: weights that were just read are still in a cache.
 */

export type Calibration = { cost: ExpertCost; samples: CostSample[]; errorMedian: number }

const expertCounts = [1, 2, 4, 8, 16]
const rowsEach = [1, 2, 4, 8, 16]
const rounds = 9

/** `stageDir`: takes 400 MB for the largest shape. */
export async function calibrate(shape: BenchShape, format: WeightFormat, stageDir: string): Promise<Calibration> {
  // One layer is like the other.
  const spec = specOf({ ...shape, layers: 1 })
  const held = Math.min(shape.experts, 32)
  const host = await createLocalHost({ spec, format, ranks: 1, provider: 'cpu', cpus: null, stageDir })
  try {
    await host.load(writeShards(spec, format, held, join(stageDir, 'shards')))
    const sizes = expertCounts
      .filter((count) => count <= held)
      .flatMap((experts) => rowsEach.map((rows) => [experts, rows]))
    const times = sizes.map((): number[] => [])
    const caller = new Caller(host, shape.hidden, format, held)
    for (let round = 0; round <= rounds; round++) {
      for (const [index, [experts = 1, rows = 1]] of sizes.entries()) {
        const ms = await caller.call(experts, rows)
        // The first round meets cold pages.
        if (round > 0) times[index]?.push(ms)
      }
    }
    const samples = sizes.map(([experts = 1, rows = 1], index) => ({
      experts,
      rows: experts * rows,
      ms: summarise(times[index] ?? []).median,
    }))
    const cost = fitCost(samples)
    const errors = samples.map(({ experts, rows, ms }) => Math.abs(callMs(cost, experts, rows) / ms - 1))
    return { cost, samples, errorMedian: summarise(errors).median }
  } finally {
    await host.close()
  }
}

class Caller {
  readonly #host: ExpertHost
  readonly #held: number
  readonly #rows: ReturnType<typeof createRowBuffer>
  readonly #outputs: ReturnType<typeof createOutputBuffer>
  #next = 0

  constructor(host: ExpertHost, hidden: number, format: WeightFormat, held: number) {
    this.#host = host
    this.#held = held
    const encoding = rowEncoding(format)
    const rowsMax = Math.max(...rowsEach)
    this.#rows = createRowBuffer(encoding, hidden, rowsMax)
    if (encoding === 'f32') fill(new Float32Array(this.#rows.data.buffer), Math.sin)
    else fill(this.#rows.data, (at) => (at * 37 + 11) % 251)
    this.#rows.scales.fill(0.01)
    this.#outputs = createOutputBuffer(hidden, rowsMax * Math.max(...expertCounts))
  }

  /** Milliseconds of a call for `count` experts with `rows` rows each. */
  async call(count: number, rows: number): Promise<number> {
    const experts = Int32Array.from({ length: count }, (_, i) => (this.#next + i) % this.#held).sort()
    this.#next = (this.#next + count) % this.#held
    const call = {
      layer: 0,
      experts,
      counts: new Int32Array(count).fill(rows),
      rowIndices: Int32Array.from({ length: count * rows }, (_, pair) => pair % rows),
      rows: this.#rows,
      outputs: this.#outputs,
      outputStart: 0,
    }
    const startMs = performance.now()
    await this.#host.call(call)
    return performance.now() - startMs
  }
}

function fill(values: Float32Array | Uint8Array, valueAt: (index: number) => number): void {
  for (let at = 0; at < values.length; at++) values[at] = valueAt(at)
}

/** Random weights of layer 0 in one file, with scales that keep outputs small. */
function writeShards(spec: ModelSpec, format: WeightFormat, count: number, path: string): ShardSource[] {
  const ffn = moeLayers(spec)[0]?.ffn
  if (!ffn) throw new Error('the shape has no experts')
  const { parts, bytes } = shardLayout(spec, ffn, format)
  const shard = Buffer.alloc(bytes)
  const file = openSync(path, 'w')
  try {
    for (let expert = 0; expert < count; expert++) {
      const random = streamFor(expert, 'shard')
      for (const part of parts) {
        const end = part.offset + part.bytes
        if (part.dtype === 'f32') {
          for (let at = part.offset; at < end; at += 4) shard.writeFloatLE(1e-4 + nextWord(random) / 2 ** 32 / 1e4, at)
        } else {
          for (let at = part.offset; at + 4 <= end; at += 4) shard.writeUInt32LE(nextWord(random), at)
        }
      }
      writeSync(file, shard)
    }
  } finally {
    closeSync(file)
  }
  return Array.from({ length: count }, (_, expert) => ({ layer: 0, expert, path, offset: expert * bytes, bytes }))
}
