import { createHash } from 'node:crypto'
import { MoeshError } from '../config/errors.ts'
import type { Weight } from '../graph/graph.ts'
import { expertGraph, projectionGraph, routerGraph } from '../graph/layers.ts'
import type { LinearWeights } from '../graph/linear.ts'
import { linearParts, type WeightFormat } from '../model/format.ts'
import { type ModelSpec, moeLayers } from '../model/spec.ts'
import { type ProductRows, paddedRows, productRows } from './product-rows.ts'
import { createSession, type Feed, type Provider, release, runtimeVersion, type SessionOptions } from './session.ts'

/**
 * The numerics class of a process: the bits that it computes from fixed inputs, hashed. Nodes whose experts disagree by
 * a bit must not serve one model together; two machines that agree in class compute the same tokens.
 */

export type NumericsOptions = SessionOptions & { format: WeightFormat }

/** Of the experts that a node computes: `cpu-1.30.0-0123456789ab`. Throws PROVIDER_UNAVAILABLE. */
export function expertNumerics(options: NumericsOptions): string {
  const hash = createHash('sha256')
  // Odd sizes and counts, one row and none: what kernels treat apart.
  for (const counts of [
    [1, 0],
    [3, 2],
    [17, 5],
  ]) {
    hash.update(expertBits(options, counts))
  }
  return className(options.provider, hash.digest('hex'))
}

/**
 * Of a coordinator's own share: linear layers, router, and the host's own functions. Always on the CPU. `kernels`: the
 * code of its own kernels, which compute the same bits everywhere.
 */
export function coordinatorNumerics(options: NumericsOptions, kernels: Uint8Array): string {
  const hash = createHash('sha256')
  const cpu = { ...options, provider: 'cpu' as const }
  hash.update(projectionBits(cpu)).update(routerBits(cpu)).update(hostBits()).update(kernels)
  return className('cpu', hash.digest('hex'))
}

/**
 * Computes one row among as many others as a rank would compute at once, at every place among them, with experts of each
 * of the model's shapes, and throws PROVIDER_UNAVAILABLE if its bits are not always the same: on that device a request's
 * tokens would depend on others. For the formats that devices run, `f32` and `int4`.
 */
export function proveRowInvariance(options: NumericsOptions, spec: ModelSpec, ruleOf = productRows): void {
  const inners = new Set(moeLayers(spec).map(({ ffn }) => ffn.inner))
  for (const inner of inners) {
    proveShape(options, spec.hidden, inner, ruleOf(options.provider, options.format, [spec.hidden, inner]))
  }
}

const provenCounts = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 256]

function proveShape(options: NumericsOptions, inputs: number, width: number, rule: ProductRows): void {
  const numbers = new Numbers()
  const experts = [0, 1].map(() => ({
    gateUp: linearWeights(numbers, options.format, inputs, 2 * width),
    down: linearWeights(numbers, options.format, width, inputs),
  }))
  const row = new Numbers().floats(inputs)
  const session = createSession(expertGraph(options.format, inputs, 'silu', experts), options)
  try {
    const beside = paddedRows(1, rule)
    let first: { count: number; bits: Buffer } | null = null
    for (const count of new Set(provenCounts.map((wanted) => paddedRows(Math.min(wanted, rule.max), rule)))) {
      const everywhere = Array.from({ length: count }, (_, at) => at)
      for (const places of [everywhere, [0, count >> 1, count - 1]]) {
        const rows = numbers.floats((count + beside) * inputs)
        for (const place of places) rows.set(row, place * inputs)
        const counts: Feed = {
          dims: [2],
          type: 'int64',
          data: BigInt64Array.of(BigInt(count), BigInt(beside)),
          location: 'cpu',
        }
        const y = session.run({ rows: floatFeed([count + beside, inputs], rows), counts }).y?.data
        if (!(y instanceof Float32Array)) throw new MoeshError('INTERNAL', 'an expert graph has no output y')
        for (const place of places) {
          const bits = Buffer.from(y.slice(place * inputs, (place + 1) * inputs).buffer)
          first ??= { count, bits }
          if (bits.equals(first.bits)) continue
          throw new MoeshError(
            'PROVIDER_UNAVAILABLE',
            `the execution provider "${options.provider}" computes other bits for row ${place + 1} of ${count} than for ` +
              `the same row as the first of ${first.count} (${options.format}, ${inputs} × ${width})`,
            'results would depend on what else is computed: use another device, another format, or --provider cpu',
          )
        }
        release(y)
      }
    }
  } finally {
    session.dispose()
  }
}

function className(provider: Provider, hex: string): string {
  return `${provider}-${runtimeVersion()}-${hex.slice(0, 12)}`
}

const hidden = 256
const inner = 128

/** Numbers that look random and are the same everywhere: a linear congruence. */
class Numbers {
  #state = 12345

  next(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0
    return this.#state / 2 ** 31 - 1
  }

  floats(count: number, scale = 1): Float32Array {
    return Float32Array.from({ length: count }, () => this.next() * scale)
  }

  bytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => Math.floor((this.next() + 1) * 128))
  }
}

function linearWeights(numbers: Numbers, format: WeightFormat, inputs: number, outputs: number): LinearWeights {
  const weights: LinearWeights = { format, inputs, outputs, parts: {} }
  for (const { name, dtype, shape } of linearParts(format, inputs, outputs)) {
    const count = shape.reduce((product, size) => product * size, 1)
    const bytes =
      dtype === 'f32' ? asBytes(numbers.floats(count, name === 'scale' ? 0.002 : 0.1)) : numbers.bytes(count)
    weights.parts[name] = weight(dtype === 'f32' ? 'f32' : dtype === 'i8' ? 'i8' : 'u8', shape, bytes)
  }
  return weights
}

function weight(type: Weight['type'], shape: readonly number[], bytes: Uint8Array): Weight {
  return { type, shape, source: { kind: 'bytes', bytes } }
}

function asBytes(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}

function floatFeed(dims: number[], data: Float32Array): Feed {
  return { dims, type: 'float32', data, location: 'cpu' }
}

function run(
  options: SessionOptions,
  graph: Parameters<typeof createSession>[0],
  feeds: Record<string, Feed>,
): Uint8Array[] {
  const session = createSession(graph, options)
  try {
    const outputs = session.run(feeds)
    return Object.keys(outputs)
      .sort()
      .flatMap((name) => {
        const data = outputs[name]?.data
        return data ? [new Uint8Array(data.buffer, data.byteOffset, data.byteLength)] : []
      })
  } finally {
    session.dispose()
  }
}

function expertBits(options: NumericsOptions, counts: readonly number[]): Uint8Array {
  const { format } = options
  const numbers = new Numbers()
  const experts = counts.map(() => ({
    gateUp: linearWeights(numbers, format, hidden, 2 * inner),
    down: linearWeights(numbers, format, inner, hidden),
  }))
  // As ranks do it: as many rows as the provider's kernels ask for.
  const rule = productRows(options.provider, format, [hidden, inner])
  const padded = counts.map((count) => paddedRows(Math.min(count, rule.max), rule))
  const rows = padded.reduce((sum, count) => sum + count, 0)
  const feeds: Record<string, Feed> = {
    counts: { dims: [counts.length], type: 'int64', data: BigInt64Array.from(padded.map(BigInt)), location: 'cpu' },
  }
  if (format === 'f32' || format === 'int4') feeds.rows = floatFeed([rows, hidden], numbers.floats(rows * hidden))
  else {
    const width = format === 'int8' ? 2 * hidden : hidden
    feeds.rows = { dims: [rows, width], type: 'uint8', data: numbers.bytes(rows * width), location: 'cpu' }
    feeds.scales = floatFeed([rows, 1], numbers.floats(rows, 0.01))
  }
  return Buffer.concat(run(options, expertGraph(format, hidden, 'silu', experts), feeds))
}

function projectionBits(options: NumericsOptions): Uint8Array {
  const numbers = new Numbers()
  const norm = { weight: weight('f32', [hidden], asBytes(numbers.floats(hidden))), eps: 1e-5 }
  const graph = projectionGraph(linearWeights(numbers, options.format, hidden, 160), { norm, gated: 'silu' })
  const pieces = [2, 6, 18].flatMap((rows) =>
    run(options, graph, { x: floatFeed([rows, hidden], numbers.floats(rows * hidden)) }),
  )
  return Buffer.concat(pieces)
}

function routerBits(options: NumericsOptions): Uint8Array {
  const numbers = new Numbers()
  const norm = { weight: weight('f32', [hidden], asBytes(numbers.floats(hidden))), eps: 1e-5 }
  const router = weight('f32', [hidden, 20], asBytes(numbers.floats(hidden * 20)))
  const graph = routerGraph({ format: options.format, hidden, experts: 20, norm, router })
  return Buffer.concat(run(options, graph, { x: floatFeed([3, hidden], numbers.floats(3 * hidden)) }))
}

/** Exponentials, roots and rotations that the coordinator computes in JavaScript. */
function hostBits(): Uint8Array {
  const numbers = new Numbers()
  const values = Float64Array.from({ length: 256 }, () => numbers.next() * 40)
  const results = [...values].flatMap((x) => [Math.exp(-Math.abs(x)), Math.sin(x), Math.cos(x), Math.sqrt(Math.abs(x))])
  return new Uint8Array(Float64Array.from(results).buffer)
}
