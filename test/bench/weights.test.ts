import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { ensureCheckpoint } from '../../bench/checkpoint.ts'
import { convertToGgml, ggmlBytes, toHalf } from '../../bench/ggml-blocks.ts'
import { ensureGguf } from '../../bench/gguf.ts'
import { benchShapes } from '../../bench/shape.ts'
import { makeVocabulary } from '../../bench/vocabulary.ts'
import { openCheckpoint } from '../../services/checkpoint/checkpoint.ts'
import { toFloats } from '../../services/checkpoint/dtype.ts'
import { small } from './small-shape.ts'

const directory = mkdtempSync(join(tmpdir(), 'moesh-bench-test-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function contentOf(path: string): Record<string, string> {
  return Object.fromEntries(readdirSync(path).map((name) => [name, readFileSync(join(path, name), 'latin1')]))
}

test('the same seed writes the same checkpoint, another seed other weights', () => {
  const [one, again, other] = [
    ensureCheckpoint(join(directory, 'a'), small, 7),
    ensureCheckpoint(join(directory, 'b'), small, 7),
    ensureCheckpoint(join(directory, 'a'), small, 8),
  ].map(contentOf)
  expect(again).toEqual(one)
  const weights = 'model-00002-of-00003.safetensors'
  expect(other?.[weights]).toHaveLength(one?.[weights]?.length ?? 0)
  expect(other?.[weights]).not.toEqual(one?.[weights])
})

test('a checkpoint that is there is not written again', () => {
  const path = ensureCheckpoint(join(directory, 'a'), small, 7)
  const before = statSync(join(path, 'config.json')).mtimeMs
  expect(ensureCheckpoint(join(directory, 'a'), small, 7)).toBe(path)
  expect(statSync(join(path, 'config.json')).mtimeMs).toBe(before)
})

test('the checkpoint reads as an OLMoE, with bell-shaped weights', () => {
  const checkpoint = openCheckpoint(ensureCheckpoint(join(directory, 'a'), small, 7))
  try {
    const { spec } = checkpoint.model
    expect(spec).toMatchObject({ family: 'olmoe', hidden: 256, vocabulary: 512, contextLength: 512 })
    expect(spec.layers).toHaveLength(2)
    expect(spec.layers[1]).toMatchObject({
      attention: { heads: 2, kvHeads: 2, headDim: 128, qkNorm: 'full' },
      ffn: { kind: 'moe', experts: 8, expertsPerToken: 2, inner: 128, router: { normalise: false } },
    })
    const moments = (name: string) => {
      const tensor = checkpoint.weights.tensor(name)
      const count = tensor.shape.reduce((product, axis) => product * axis, 1)
      const values = new Float32Array(count)
      checkpoint.weights.readFloats(tensor, 0, count, values)
      const mean = values.reduce((sum, value) => sum + value, 0) / count
      return { mean, deviation: Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / count) }
    }
    const linear = moments('model.layers.0.self_attn.q_proj.weight')
    expect(linear.mean).toBeCloseTo(0, 3)
    expect(linear.deviation).toBeCloseTo(0.02, 3)
    expect(moments('model.norm.weight').mean).toBeCloseTo(1, 2)
  } finally {
    checkpoint.close()
  }
})

test('every half-precision number is found again, and what lies between goes to the nearest', () => {
  // All positive finite ones.
  const bits = Uint16Array.from({ length: 0x7c00 }, (_, index) => index)
  const values = new Float32Array(bits.length)
  toFloats(new Uint8Array(bits.buffer), 'f16', bits.length, values, 0)
  expect(Uint16Array.from(values, toHalf)).toEqual(bits)
  expect(Uint16Array.from(values, (value) => toHalf(-value) & 0x7fff)).toEqual(bits)
  expect(toHalf(-1)).toBe(0xbc00)
  // Ties go to the even neighbour.
  expect(toHalf(1 + 1 / 2048)).toBe(0x3c00)
  expect(toHalf(1 + 3 / 2048)).toBe(0x3c02)
  expect(toHalf(1 + 1 / 2048 + 1e-6)).toBe(0x3c01)
})

/** Blocks read as the format is described, not as they were written. */
function readBlocks(format: 'Q8_0' | 'Q4_0', bytes: Uint8Array): number[] {
  const view = new DataView(bytes.buffer)
  const blockBytes = ggmlBytes(format, 32)
  const half = new Float32Array(1)
  const values: number[] = []
  for (let at = 0; at < bytes.length; at += blockBytes) {
    toFloats(bytes.slice(at, at + 2), 'f16', 1, half, 0)
    const scale = half[0] ?? 0
    for (let i = 0; i < 32; i++) {
      if (format === 'Q8_0') values.push(scale * view.getInt8(at + 2 + i))
      else values.push(scale * (((view.getUint8(at + 2 + (i % 16)) >> (i < 16 ? 0 : 4)) & 15) - 8))
    }
  }
  return values
}

test.each([
  { format: 'Q8_0', steps: 127 },
  { format: 'Q4_0', steps: 8 },
] as const)('$format keeps each weight to a step of its block', ({ format, steps }) => {
  const values = Float32Array.from({ length: 32 * 50 }, (_, i) => Math.sin(i * 1.7) * (1 + (i >> 5)))
  values.fill(0, 64, 96)
  const bytes = new Uint8Array(ggmlBytes(format, values.length))
  convertToGgml(format, values, bytes)
  const read = readBlocks(format, bytes)
  for (let block = 0; block < values.length; block += 32) {
    const largest = Math.max(...values.subarray(block, block + 32).map(Math.abs))
    for (let i = block; i < block + 32; i++) {
      expect(Math.abs((read[i] ?? Number.NaN) - (values[i] ?? 0))).toBeLessThanOrEqual((largest / steps) * 1.01)
    }
  }
})

test('a GGUF file has its tensors aligned, in bounds and of the right sizes', () => {
  const checkpoint = ensureCheckpoint(join(directory, 'a'), small, 7)
  const bytes = readFileSync(ensureGguf(directory, checkpoint, small, 'Q8_0'))
  const { metadata, tensors, dataOffset } = readGguf(bytes)
  expect(metadata).toMatchObject({
    'general.architecture': 'olmoe',
    'olmoe.expert_count': 8,
    'olmoe.expert_used_count': 2,
    'olmoe.feed_forward_length': 128,
  })
  expect(metadata['tokenizer.ggml.tokens']).toHaveLength(small.vocabulary)
  expect(dataOffset % 32).toBe(0)
  expect(tensors.find(({ name }) => name === 'blk.1.ffn_down_exps.weight')).toMatchObject({ sizes: [128, 256, 8] })
  let end = 0
  for (const { type, sizes, offset } of tensors) {
    expect(offset).toBe(Math.ceil(end / 32) * 32)
    end =
      offset +
      ggmlBytes(
        type === 0 ? 'F32' : 'Q8_0',
        sizes.reduce((product, size) => product * size, 1),
      )
  }
  expect(bytes.length - dataOffset).toBe(Math.ceil(end / 32) * 32)
})

/** A reader of its own, after the format's description. */
function readGguf(bytes: Buffer) {
  let at = 0
  const take = (length: number) => {
    at += length
    return bytes.subarray(at - length, at)
  }
  const u32 = () => take(4).readUInt32LE()
  const u64 = () => Number(take(8).readBigUInt64LE())
  const text = () => take(u64()).toString('utf8')
  const value = (type: number): unknown => {
    if (type === 4 || type === 5) return u32()
    if (type === 6) return take(4).readFloatLE()
    if (type === 7) return take(1)[0] === 1
    if (type === 8) return text()
    if (type !== 9) throw new Error(`type ${type}`)
    const inner = u32()
    return Array.from({ length: u64() }, () => value(inner))
  }
  expect(bytes.toString('latin1', 0, 4)).toBe('GGUF')
  at = 4
  expect(u32()).toBe(3)
  const [tensorCount, entryCount] = [u64(), u64()]
  const metadata = Object.fromEntries(Array.from({ length: entryCount }, () => [text(), value(u32())]))
  const tensors = Array.from({ length: tensorCount }, () => {
    const name = text()
    const sizes = Array.from({ length: u32() }, u64)
    return { name, sizes, type: u32(), offset: u64() }
  })
  return { metadata, tensors, dataOffset: Math.ceil(at / 32) * 32 }
}

test.each(Object.values(benchShapes))(
  'the vocabulary of $name is complete and has no token twice',
  ({ vocabulary }) => {
    const { tokens, merges, endOfText } = makeVocabulary(vocabulary)
    expect(tokens).toHaveLength(vocabulary)
    expect(new Set(tokens).size).toBe(vocabulary)
    expect(merges).toHaveLength(vocabulary - 257)
    expect(endOfText).toBe(vocabulary - 1)
  },
)
