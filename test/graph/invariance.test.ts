import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readColumns, type TensorSource } from '../../services/coordinator/team/columns.ts'
import { cutColumns } from '../../services/coordinator/team/cut.ts'
import { expertGraph, projectionGraph } from '../../services/graph/layers.ts'
import { rowMultiple } from '../../services/graph/linear.ts'
import { linearParts, partBytes, type WeightFormat, weightFormats } from '../../services/model/format.ts'
import { saturatesInt8 } from '../../services/runtime/probe.ts'
import { createSession, type Feed, type Session, type SessionOptions } from '../../services/runtime/session.ts'
import { randomBytes, randomFloats } from './random.ts'

let stageDir = ''
let options: SessionOptions

beforeAll(() => {
  stageDir = mkdtempSync(join(tmpdir(), 'moesh-invariance-'))
  options = { stageDir, provider: 'cpu', avoidSaturation: saturatesInt8(stageDir) }
})
afterAll(() => rmSync(stageDir, { recursive: true, force: true }))

/** Tensors `w.PART` of a random linear layer, in a file. */
function randomLinear(format: WeightFormat, inputs: number, outputs: number, seed: number): TensorSource {
  const path = join(stageDir, `${format}-${inputs}-${outputs}-${seed}.bin`)
  const pieces: Uint8Array[] = []
  const offsets = new Map<string, number>()
  let offset = 0
  for (const part of linearParts(format, inputs, outputs)) {
    const bytes =
      part.dtype === 'f32'
        ? new Uint8Array(randomFloats(partBytes(part) / 4, part.name === 'scale' ? 0.002 : 0.1, seed).buffer)
        : randomBytes(partBytes(part), seed + 1)
    pieces.push(bytes)
    offsets.set(`w.${part.name}`, offset)
    offset += bytes.byteLength
  }
  writeFileSync(path, Buffer.concat(pieces))
  return {
    locate: (name) => ({ path, offset: offsets.get(name) ?? Number.NaN }),
    readTensor: () => new Uint8Array(0),
  }
}

const whole = (source: TensorSource, format: WeightFormat, inputs: number, outputs: number, from = 0, to = outputs) =>
  readColumns(source, format, inputs, [{ tensor: 'w', outputs, range: { from, to }, bias: null }])

function rowsFeed(data: Float32Array, rows: number, inputs: number): Record<string, Feed> {
  return { x: { dims: [rows, inputs], type: 'float32', data: data.subarray(0, rows * inputs), location: 'cpu' } }
}

function bits(session: Session, x: Float32Array, rows: number, inputs: number): Int32Array {
  const data = session.run(rowsFeed(x, rows, inputs)).y?.data
  if (!(data instanceof Float32Array)) throw new Error('no output')
  return new Int32Array(data.buffer)
}

describe.each(weightFormats)('%s', (format) => {
  test.each([
    { inputs: 64, outputs: 96 },
    { inputs: 192, outputs: 2048 },
    { inputs: 256, outputs: 480 },
  ])('a row has the same bits alone and among others: $inputs x $outputs', ({ inputs, outputs }) => {
    const session = createSession(
      projectionGraph(whole(randomLinear(format, inputs, outputs, 7), format, inputs, outputs)),
      options,
    )
    const rowsMax = 130
    const x = randomFloats(rowsMax * inputs, 1, 3)
    const multiple = rowMultiple(format, inputs)
    const alone = Array.from({ length: rowsMax }, (_, row) => {
      const padded = new Float32Array(multiple * inputs)
      padded.set(x.subarray(row * inputs, (row + 1) * inputs))
      return bits(session, padded, multiple, inputs).subarray(0, outputs)
    })
    for (const rows of [2, 3, 4, 5, 8, 16, 17, 31, 64, 65, 130]) {
      const fed = Math.ceil(rows / multiple) * multiple
      const together = bits(session, x, Math.min(fed, rowsMax), inputs)
      for (let row = 0; row < rows; row++) {
        expect(together.subarray(row * outputs, (row + 1) * outputs), `row ${row} of ${rows}`).toEqual(alone[row])
      }
    }
    session.dispose()
  })

  test.each([
    { inputs: 64, outputs: 96 },
    { inputs: 256, outputs: 2080 },
    { inputs: 1024, outputs: 1000 },
  ])('a column has the same bits wherever the layer is cut: $inputs x $outputs', ({ inputs, outputs }) => {
    const source = randomLinear(format, inputs, outputs, 11)
    const rows = 6
    const x = randomFloats(rows * inputs, 1, 5)
    const reference = createSession(projectionGraph(whole(source, format, inputs, outputs)), options)
    const expected = bits(reference, x, rows, inputs)
    for (const threads of [2, 3, 5]) {
      for (let thread = 0; thread < threads; thread++) {
        const { from, to } = cutColumns(outputs, threads, thread)
        if (from >= to) continue
        const session = createSession(projectionGraph(whole(source, format, inputs, outputs, from, to)), options)
        const part = bits(session, x, rows, inputs)
        const width = to - from
        for (let row = 0; row < rows; row++) {
          expect(part.subarray(row * width, (row + 1) * width), `columns ${from}-${to}, row ${row}`).toEqual(
            expected.subarray(row * outputs + from, row * outputs + to),
          )
        }
        session.dispose()
      }
    }
    reference.dispose()
  })

  test('an expert has the same bits alone and in a session with others', () => {
    const hidden = 192
    const inner = 96
    const experts = [0, 1, 2, 3, 4].map((seed) => ({
      gateUp: whole(randomLinear(format, hidden, 2 * inner, 20 + seed), format, hidden, 2 * inner),
      down: whole(randomLinear(format, inner, hidden, 40 + seed), format, inner, hidden),
    }))
    const counts = [2, 0, 6, 1, 4]
    const multiple = Math.max(rowMultiple(format, hidden), rowMultiple(format, inner))
    const padded = counts.map((count) => Math.ceil(count / multiple) * multiple)
    const total = padded.reduce((sum, count) => sum + count, 0)
    const width = format === 'int8' ? 2 * hidden : hidden
    const plain = format === 'f32' || format === 'int4'
    const floats = randomFloats(total * hidden, 1, 9)
    const bytes = randomBytes(total * width, 10)
    const scales = randomFloats(total, 0.01, 12)
    const feeds = (from: number, rows: number, sizes: number[]): Record<string, Feed> => ({
      counts: { dims: [sizes.length], type: 'int64', data: BigInt64Array.from(sizes.map(BigInt)), location: 'cpu' },
      rows: plain
        ? {
            dims: [rows, hidden],
            type: 'float32',
            data: floats.subarray(from * hidden, (from + rows) * hidden),
            location: 'cpu',
          }
        : {
            dims: [rows, width],
            type: 'uint8',
            data: bytes.subarray(from * width, (from + rows) * width),
            location: 'cpu',
          },
      ...(plain
        ? {}
        : { scales: { dims: [rows, 1], type: 'float32', data: scales.subarray(from, from + rows), location: 'cpu' } }),
    })
    const together = createSession(expertGraph(format, hidden, 'silu', experts), options)
    const all = together.run(feeds(0, total, padded)).y?.data as Float32Array
    let from = 0
    experts.forEach((expert, index) => {
      const rows = padded[index] ?? 0
      if (rows > 0) {
        const alone = createSession(expertGraph(format, hidden, 'silu', [expert]), options)
        const one = alone.run(feeds(from, rows, [rows])).y?.data as Float32Array
        expect(new Int32Array(one.buffer)).toEqual(
          new Int32Array(all.buffer).subarray(from * hidden, (from + rows) * hidden),
        )
        alone.dispose()
      }
      from += rows
    })
    together.dispose()
  })
})
