import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SafetensorsFile } from '../../services/checkpoint/safetensors.ts'
import { openWeights } from '../../services/checkpoint/weights.ts'
import { MoeshError } from '../../services/config/errors.ts'
import { bfloatBytes, floatBytes, safetensors, safetensorsFile } from './make-safetensors.ts'

let directory = ''
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'moesh-safetensors-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function write(content: Uint8Array, name = 'model.safetensors'): string {
  const path = join(directory, name)
  writeFileSync(path, content)
  return path
}

const entry = (start: number, end: number, shape: number[], dtype = 'F32') => ({
  dtype,
  shape,
  data_offsets: [start, end],
})
const data = (bytes: number) => new Uint8Array(bytes)
const valid = safetensors({ a: entry(0, 8, [2]), b: entry(8, 24, [2, 2]) }, data(24))

describe('a safetensors file that does not hold is refused, with its name and what is wrong', () => {
  test.each([
    { why: 'empty', content: data(0), says: /0 bytes, too few/ },
    { why: 'seven bytes', content: data(7), says: /7 bytes, too few/ },
    { why: 'truncated within the header', content: valid.subarray(0, 40), says: /ends within its header/ },
    {
      why: 'truncated within the data',
      content: valid.subarray(0, -1),
      says: /tensor b ends at byte \d+, the file has \d+; the file is truncated/,
    },
    { why: 'bytes behind the data', content: Buffer.concat([valid, data(3)]), says: /3 bytes behind its last tensor/ },
    { why: 'a header beyond the file', content: safetensors({}, data(0), 1000n), says: /ends within its header/ },
    {
      why: 'a header beyond the limit',
      content: safetensors({}, data(0), 2n ** 63n),
      says: /the format allows 100000000/,
    },
    { why: 'an empty header', content: safetensors('', data(8)), says: /too few for JSON/ },
    { why: 'a header that is no JSON', content: safetensors('{"a": ', data(0)), says: /not valid JSON/ },
    { why: 'a header that is a list', content: safetensors('[1]', data(0)), says: /not a JSON object/ },
    {
      why: 'a header that is no UTF-8',
      content: Buffer.concat([Buffer.from([3, 0, 0, 0, 0, 0, 0, 0]), Buffer.from([0x7b, 0xff, 0x7d])]),
      says: /not UTF-8/,
    },
    {
      why: 'a Git LFS pointer',
      content: Buffer.from('version https://example.invalid/spec/v1\noid'),
      says: /Git LFS pointer/,
    },
    {
      why: 'offsets outside the file',
      content: safetensors({ a: entry(0, 400, [100]) }, data(8)),
      says: /tensor a ends at byte/,
    },
    {
      why: 'overlapping tensors',
      content: safetensors({ a: entry(0, 8, [2]), b: entry(4, 12, [2]) }, data(12)),
      says: /tensor b overlaps tensor a/,
    },
    {
      why: 'two tensors in one place',
      content: safetensors({ a: entry(0, 8, [2]), b: entry(0, 8, [2]) }, data(8)),
      says: /overlaps/,
    },
    {
      why: 'a hole',
      content: safetensors({ a: entry(0, 8, [2]), b: entry(12, 20, [2]) }, data(20)),
      says: /4 bytes between tensor a and tensor b/,
    },
    {
      why: 'a hole at the front',
      content: safetensors({ a: entry(4, 12, [2]) }, data(12)),
      says: /4 bytes between the header and tensor a/,
    },
    {
      why: 'shape and offsets that disagree',
      content: safetensors({ a: entry(0, 8, [3]) }, data(8)),
      says: /tensor a: F32 \[3\] takes 12 bytes, its offsets say 8/,
    },
    {
      why: 'a shape that overflows',
      content: safetensors({ a: entry(0, 8, [2 ** 52, 2 ** 52]) }, data(8)),
      says: /tensor a: F32/,
    },
    { why: 'a negative size', content: safetensors({ a: entry(0, 8, [-2]) }, data(8)), says: /tensor a: shape\.0/ },
    { why: 'a fractional size', content: safetensors({ a: entry(0, 8, [1.5]) }, data(8)), says: /tensor a: shape\.0/ },
    {
      why: 'an end before the beginning',
      content: safetensors({ a: entry(8, 0, [2]) }, data(8)),
      says: /tensor a ends \(0\) before it begins \(8\)/,
    },
    {
      why: 'an unknown type',
      content: safetensors({ a: entry(0, 8, [2], 'F33') }, data(8)),
      says: /tensor a has the unknown type F33/,
    },
    {
      why: 'a type from the prototype',
      content: safetensors({ a: entry(0, 8, [2], 'toString') }, data(8)),
      says: /unknown type toString/,
    },
    {
      why: 'a missing key',
      content: safetensors({ a: { dtype: 'F32', shape: [2] } }, data(8)),
      says: /tensor a: data_offsets/,
    },
    { why: 'an unknown key', content: safetensors({ a: { ...entry(0, 8, [2]), x: 1 } }, data(8)), says: /tensor a/ },
    {
      why: 'metadata that is no map of strings',
      content: safetensors({ __metadata__: { a: 1 } }, data(0)),
      says: /__metadata__/,
    },
    {
      why: 'a tensor listed twice',
      content: safetensors(
        `{"a":${JSON.stringify(entry(0, 8, [2]))}, "\\u0061" : ${JSON.stringify(entry(0, 8, [2]))}}`,
        data(8),
      ),
      says: /lists tensor a twice/,
    },
  ])('$why', ({ content, says }) => {
    const path = write(content)
    const open = () => new SafetensorsFile(path)
    expect(open).toThrow(says)
    expect(open).toThrow(path)
    expect(open).toThrow(expect.objectContaining({ code: 'CHECKPOINT_INVALID' }))
  })

  test('any single changed byte of the header gives an error or the same tensors, never a crash', () => {
    const headerEnd = valid.length - 24
    fc.assert(
      fc.property(fc.nat(headerEnd - 1), fc.nat(255), (at, byte) => {
        const content = Buffer.from(valid)
        content[at] = byte
        const path = write(content)
        try {
          new SafetensorsFile(path).close()
        } catch (error) {
          expect(error).toBeInstanceOf(MoeshError)
        }
      }),
      { seed: 7, numRuns: 400 },
    )
  })
})

describe('values are read as they are', () => {
  test('f32, bf16 and f16, from any place of any file', () => {
    const values = [0, -1, 1.5, 0.09375, -65504, 2 ** -14]
    const halves = new Uint8Array(Uint16Array.of(0x0000, 0xbc00, 0x3e00, 0x2e00, 0xfbff, 0x0400).buffer)
    const bfloats = [0, -1, 1.5, 0.09375, -65536, 2 ** -120]
    write(
      safetensorsFile({
        odd: { dtype: 'BF16', shape: [1], data: bfloatBytes([2]) },
        single: { dtype: 'F32', shape: [2, 3], data: floatBytes(values) },
        brain: { dtype: 'BF16', shape: [6], data: bfloatBytes(bfloats) },
        half: { dtype: 'F16', shape: [6], data: halves },
      }),
    )
    const weights = openWeights(directory)
    const read = (name: string, start = 0, count = 6) => {
      const out = new Float32Array(count)
      weights.readFloats(weights.tensor(name), start, count, out)
      return [...out]
    }
    expect(read('single')).toEqual(values.map(Math.fround))
    expect(read('single', 2, 2)).toEqual([1.5, 0.09375])
    expect(read('brain')).toEqual(bfloats)
    expect(read('half')).toEqual(values)
    weights.close()
  })

  test('halves: subnormals and both zeros', () => {
    write(
      safetensorsFile({
        h: { dtype: 'F16', shape: [3], data: new Uint8Array(Uint16Array.of(0x0001, 0x83ff, 0x8000).buffer) },
      }),
    )
    const weights = openWeights(directory)
    const out = new Float32Array(3)
    weights.readFloats(weights.tensor('h'), 0, 3, out)
    expect([...out]).toEqual([2 ** -24, -1023 * 2 ** -24, -0])
    weights.close()
  })

  test('a value that is not finite is refused, with file and tensor', () => {
    const path = write(safetensorsFile({ x: { dtype: 'F32', shape: [2], data: floatBytes([1, Number.NaN]) } }))
    const weights = openWeights(directory)
    const read = () => weights.readFloats(weights.tensor('x'), 0, 2, new Float32Array(2))
    expect(read).toThrow(`${path}: tensor x holds a value that is not finite`)
    weights.close()
  })

  test('other types are refused by name when they are wanted', () => {
    write(safetensors({ q: entry(0, 4, [4], 'F8_E4M3') }, data(4)))
    const weights = openWeights(directory)
    expect(() => weights.dtype(weights.tensor('q'))).toThrow(/tensor q has type F8_E4M3; F32, BF16 and F16/)
    weights.close()
  })
})

describe('shards and their index', () => {
  const index = (map: Record<string, string>) =>
    writeFileSync(join(directory, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }))
  const one = safetensorsFile({ x: { dtype: 'F32', shape: [1], data: floatBytes([1]) } })

  test.each([
    {
      why: 'a missing shard',
      map: { x: 'one.safetensors', y: 'gone.safetensors' },
      says: /gone\.safetensors cannot be opened/,
    },
    {
      why: 'a tensor that is elsewhere',
      map: { x: 'one.safetensors', y: 'one.safetensors' },
      says: /says that tensor y is in one\.safetensors, and it is not/,
    },
    {
      why: 'a tensor in two shards',
      map: { x: 'one.safetensors', y: 'two.safetensors' },
      says: /tensor x is in .*one\.safetensors and again in .*two\.safetensors/,
    },
    {
      why: 'a path out of the directory',
      map: { x: '../one.safetensors' },
      says: /no safetensors file of this directory/,
    },
    { why: 'no tensors', map: {}, says: /lists no tensors/ },
  ])('$why', ({ map, says }) => {
    write(one, 'one.safetensors')
    write(one, 'two.safetensors')
    index(map)
    expect(() => openWeights(directory)).toThrow(says)
    rmSync(join(directory, 'model.safetensors.index.json'))
  })
})
