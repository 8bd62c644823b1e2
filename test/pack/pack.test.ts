import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint } from '../../services/checkpoint/checkpoint.ts'
import { type LinearPart, linearParts, type WeightFormat, weightFormats } from '../../services/model/format.ts'
import { coordinatorTensors, expertTensors, shardLayout } from '../../services/model/tensors.ts'
import { packCached } from '../../services/pack/cache.ts'
import { type PackOptions, packCheckpoint } from '../../services/pack/pack.ts'
import { openPack, type PackReader } from '../../services/pack/reader.ts'
import { verifyPack } from '../../services/pack/verify.ts'

let work = ''
let made = 0
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'moesh-pack-'))
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

const newDir = () => join(work, `pack-${made++}`)
const golden = (name: string) => join('test/goldens', name)

async function pack(name: string, options: PackOptions, dir = newDir()): Promise<PackReader> {
  await packCheckpoint(golden(name), dir, options)
  return openPack(dir)
}

/** A linear layer as published, turned to [inputs, outputs]. */
function published(checkpoint: Checkpoint, tensors: readonly string[], inputs: number, outputs: number): Float32Array {
  const out = new Float32Array(inputs * outputs)
  let column = 0
  for (const name of tensors) {
    const tensor = checkpoint.weights.tensor(name)
    const [rows = 0] = tensor.shape
    const values = new Float32Array(rows * inputs)
    checkpoint.weights.readFloats(tensor, 0, values.length, values)
    for (let n = 0; n < rows; n++) {
      for (let k = 0; k < inputs; k++) out[k * outputs + column + n] = values[n * inputs + k] ?? 0
    }
    column += rows
  }
  return out
}

/** What a linear layer's parts stand for, [inputs, outputs]; `step[n]` bounds the error of column n. */
function unpack(
  format: WeightFormat,
  inputs: number,
  outputs: number,
  read: (part: LinearPart) => Buffer,
): { values: Float32Array; steps: Float32Array } {
  const [first, second] = linearParts(format, inputs, outputs)
  if (first === undefined) throw new Error('no parts')
  const data = read(first)
  const floats = (bytes: Buffer) =>
    new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
  const steps = new Float32Array(outputs)
  if (second === undefined) return { values: floats(data), steps }
  const scale = floats(read(second))
  const values = new Float32Array(inputs * outputs)
  const [, blocks = 1, half = 1] = first.shape
  for (let n = 0; n < outputs; n++) {
    for (let k = 0; k < inputs; k++) {
      if (format === 'int4') {
        const block = n * blocks + Math.floor(k / (2 * half))
        const byte = data[block * half + ((k % (2 * half)) >> 1)] ?? 0
        values[k * outputs + n] = ((k % 2 === 0 ? byte & 15 : byte >> 4) - 8) * (scale[block] ?? 0)
        steps[n] = Math.max(steps[n] ?? 0, Math.abs(scale[block] ?? 0) * 3)
      } else {
        values[k * outputs + n] = data.readInt8(k * outputs + n) * (scale[n] ?? 0)
        steps[n] = (scale[n] ?? 0) * 0.50001
      }
    }
  }
  return { values, steps }
}

function expectClose(
  found: { values: Float32Array; steps: Float32Array },
  wanted: Float32Array,
  outputs: number,
): void {
  const { values, steps } = found
  expect(values.length).toBe(wanted.length)
  let worst = 0
  for (let i = 0; i < wanted.length; i++) {
    worst = Math.max(worst, Math.abs((values[i] ?? Number.NaN) - (wanted[i] ?? 0)) - (steps[i % outputs] ?? 0))
  }
  expect(worst).toBeLessThanOrEqual(0)
}

describe.each(weightFormats)('%s', (format) => {
  test.each(['llama_tied', 'mistral_full', 'mixtral_sharded_bf16', 'olmoe', 'qwen3_moe_mixed_layers'])(
    '%s: every weight of the checkpoint is in the pack',
    async (name) => {
      const reader = await pack(name, { format })
      const checkpoint = openCheckpoint(golden(name))
      const { spec, sources, expertSources } = checkpoint.model
      for (const { name: tensor, kind, shape } of coordinatorTensors(spec)) {
        const [inputs = 0, outputs = 1] = shape
        const { tensors } = sources(tensor)
        if (kind === 'linear') {
          const found = unpack(format, inputs, outputs, (part) => reader.readTensor(`${tensor}.${part.name}`))
          expectClose(found, published(checkpoint, tensors, inputs, outputs), outputs)
        } else if (kind === 'embedding') {
          const source = checkpoint.weights.tensor(tensors[0] ?? '')
          const bytes = Buffer.alloc(source.bytes)
          source.file.readAt(bytes, source.offset)
          expect(reader.readTensor(tensor).equals(bytes)).toBe(true)
        } else if (kind === 'router') {
          expect(reader.readVector(tensor)).toEqual(published(checkpoint, tensors, inputs, outputs))
        } else {
          const values = tensors.map((source) => published(checkpoint, [source], 1, inputs / tensors.length))
          expect([...reader.readVector(tensor)]).toEqual(values.flatMap((value) => [...value]))
        }
      }
      for (const [layer, { ffn }] of spec.layers.entries()) {
        if (ffn.kind !== 'moe') continue
        const { parts, bytes } = shardLayout(spec, ffn, format)
        for (let expert = 0; expert < ffn.experts; expert++) {
          const shard = reader.readShard(layer, expert)
          expect(shard.length).toBe(bytes)
          for (const { name: tensor, shape } of expertTensors(spec, ffn)) {
            const [inputs = 0, outputs = 0] = shape
            const found = unpack(format, inputs, outputs, (part) => {
              const place = parts.find((candidate) => candidate.name === `${tensor}.${part.name}`)
              return shard.subarray(place?.offset, (place?.offset ?? 0) + (place?.bytes ?? 0))
            })
            expectClose(
              found,
              published(checkpoint, expertSources(layer, expert, tensor).tensors, inputs, outputs),
              outputs,
            )
          }
        }
      }
      checkpoint.close()
    },
  )

  test('the bytes do not depend on the memory that packing had, and nothing in them on the place', async () => {
    const whole = await pack('mixtral_sharded_bf16', { format })
    const small = await pack('mixtral_sharded_bf16', { format, memory: { chunkElements: 100, stripBytes: 1000 } })
    expect(small.digest).toBe(whole.digest)
  })
})

/** Packs until the nth sign of progress. Returns whether it was cut. */
async function packUntil(name: string, dir: string, format: WeightFormat, progressCount: number): Promise<boolean> {
  const abort = new AbortController()
  let seen = 0
  const onProgress = () => {
    seen += 1
    if (seen === progressCount) abort.abort()
  }
  try {
    await packCheckpoint(golden(name), dir, { format, onProgress, signal: abort.signal })
    return false
  } catch (error) {
    expect(error).toMatchObject({ code: 'CANCELLED' })
    return true
  }
}

describe('an interrupted pack', () => {
  const format = 'int8'
  const name = 'mixtral_sharded_bf16'

  test('is never taken for a finished one, and goes on, wherever it was cut', async () => {
    const { digest } = await pack(name, { format })
    let cuts = 0
    let resumed = 0
    for (let progressCount = 1; ; progressCount += 7) {
      const dir = newDir()
      if (!(await packUntil(name, dir, format, progressCount))) break
      cuts += 1
      expect(() => openPack(dir)).toThrow(/unfinished pack: packing was interrupted; run "moesh pack" again/)
      const result = await packCheckpoint(golden(name), dir, { format })
      expect(result.digest).toBe(digest)
      resumed += result.bytesResumed
      expect(readdirSync(dir).filter((file) => /partial|progress|lock/.test(file))).toEqual([])
    }
    expect(cuts).toBeGreaterThan(10)
    expect(resumed).toBeGreaterThan(0)
  })

  test('may be cut again and again', async () => {
    const { digest } = await pack(name, { format })
    const dir = newDir()
    for (let cut = 0; cut < 6; cut++) await packUntil(name, dir, format, 20 + 10 * cut)
    expect((await packCheckpoint(golden(name), dir, { format })).digest).toBe(digest)
  })

  test.each([
    {
      why: 'a byte of what was written is changed',
      harm: (dir: string) => flipByte(join(dir, 'coordinator.bin'), 5000),
    },
    {
      why: 'a file is shorter than it was',
      harm: (dir: string) =>
        writeFileSync(join(dir, 'coordinator.bin'), readFileSync(join(dir, 'coordinator.bin')).subarray(0, 9000)),
    },
    {
      why: 'the journal ends within a line',
      harm: (dir: string) => appendFileSync(join(dir, 'pack-progress.jsonl'), '{"file":"exp'),
    },
    {
      why: 'the journal names digests that are wrong',
      harm: (dir: string) =>
        appendFileSync(
          join(dir, 'pack-progress.jsonl'),
          `${JSON.stringify({ file: 'coordinator.bin', unit: 3, sha256: '0'.repeat(64) })}\n`,
        ),
    },
    { why: 'the journal is gone', harm: (dir: string) => rmSync(join(dir, 'pack-progress.jsonl')) },
  ])('gives the same pack when $why meanwhile', async ({ harm }) => {
    const { digest } = await pack(name, { format })
    const dir = newDir()
    expect(await packUntil(name, dir, format, 60)).toBe(true)
    expect(existsSync(join(dir, 'coordinator.bin'))).toBe(true)
    harm(dir)
    expect((await packCheckpoint(golden(name), dir, { format })).digest).toBe(digest)
    await verifyPack(dir)
  })

  test('starts over for another format or another checkpoint', async () => {
    const dir = newDir()
    await packUntil(name, dir, format, 60)
    const other = await packCheckpoint(golden(name), dir, { format: 'int4' })
    expect(other.bytesResumed).toBe(0)
    expect(other.digest).toBe((await pack(name, { format: 'int4' })).digest)
  })
})

function flipByte(path: string, at: number): void {
  const content = readFileSync(path)
  content[at] = (content[at] ?? 0) ^ 0x10
  writeFileSync(path, content)
}

describe('verify', () => {
  test('accepts what is whole, and reports all bytes as progress', async () => {
    const reader = await pack('olmoe', { format: 'int4' })
    let last = { bytesDone: 0, bytesTotal: 1 }
    const verified = await verifyPack(reader.dir, (progress) => {
      last = progress
    })
    expect(verified).toMatchObject({ digest: reader.digest, shards: 48 })
    expect(last).toEqual({ bytesDone: verified.bytes, bytesTotal: verified.bytes })
  })

  test('names the shard, or the file, of a changed byte', async () => {
    const reader = await pack('olmoe', { format: 'int8' })
    const { file, offset, bytes } = reader.shard(1, 5)
    flipByte(join(reader.dir, file), offset + bytes - 1)
    await expect(verifyPack(reader.dir)).rejects.toMatchObject({
      code: 'PACK_DIGEST',
      message: expect.stringMatching(/digest does not match of shard L1\/E5 in experts-001\.bin; remove it/),
    })
    flipByte(join(reader.dir, 'coordinator.bin'), 12345)
    await expect(verifyPack(reader.dir)).rejects.toThrow(/coordinator\.bin, shard L1\/E5/)
  })

  test('names the file of a changed byte between shards', async () => {
    const reader = await pack('olmoe', { format: 'int8' })
    const { file, offset, bytes } = reader.shard(0, 0)
    flipByte(join(reader.dir, file), offset + bytes)
    await expect(verifyPack(reader.dir)).rejects.toThrow(/match of experts-000\.bin;/)
  })
})

describe('a directory that is no whole pack is refused, with what to do', () => {
  type Edit = (manifest: {
    [key: string]: unknown
    tensors: Record<string, unknown>[]
    shards: Record<string, unknown>[]
    files: Record<string, unknown>[]
  }) => void
  const edits: { why: string; edit: Edit; says: RegExp }[] = [
    {
      why: 'another version',
      edit: (m) => {
        m.formatVersion = 99
      },
      says: /manifest\.json: formatVersion/,
    },
    {
      why: 'an unknown key',
      edit: (m) => {
        m.extra = 1
      },
      says: /extra/,
    },
    {
      why: 'a missing tensor',
      edit: (m) => {
        m.tensors = m.tensors.filter(({ name }) => name !== 'layers.1.router')
      },
      says: /no tensor layers\.1\.router/,
    },
    {
      why: 'a tensor too many',
      edit: (m) => {
        m.tensors.push({ ...m.tensors[0], name: 'spare' })
      },
      says: /tensors, the model needs/,
    },
    {
      why: 'a wrong shape',
      edit: (m) => {
        Object.assign(m.tensors[0] ?? {}, { shape: [3, 3] })
      },
      says: /tensor embed is f32 \[3, 3\], the model needs f32 \[288, 32\]/,
    },
    {
      why: 'a wrong type',
      edit: (m) => {
        Object.assign(m.tensors.find(({ name }) => name === 'final_norm') ?? {}, { dtype: 'i8' })
      },
      says: /tensor final_norm is i8/,
    },
    {
      why: 'a wrong size',
      edit: (m) => {
        Object.assign(m.tensors[0] ?? {}, { bytes: 64 })
      },
      says: /tensor embed has 64 bytes/,
    },
    {
      why: 'a crooked offset',
      edit: (m) => {
        Object.assign(m.tensors[1] ?? {}, { offset: 60 })
      },
      says: /begins at 60, no multiple of 64/,
    },
    {
      why: 'an offset outside',
      edit: (m) => {
        Object.assign(m.tensors[1] ?? {}, { offset: 64_000_000 })
      },
      says: /ends at byte 64\d+ of coordinator\.bin/,
    },
    {
      why: 'overlapping tensors',
      edit: (m) => {
        Object.assign(m.tensors[1] ?? {}, { offset: 0 })
      },
      says: /overlaps tensor/,
    },
    {
      why: 'a missing shard',
      edit: (m) => {
        m.shards.pop()
      },
      says: /no shard L2\/E15/,
    },
    {
      why: 'a crooked shard',
      edit: (m) => {
        Object.assign(m.shards[3] ?? {}, { offset: 64 })
      },
      says: /shard L0\/E3 begins at 64, no multiple of 4096/,
    },
    {
      why: 'a shard of another size',
      edit: (m) => {
        Object.assign(m.shards[3] ?? {}, { bytes: 64 })
      },
      says: /shard L0\/E3 has 64 bytes/,
    },
    {
      why: 'a file out of the directory',
      edit: (m) => {
        Object.assign(m.files[0] ?? {}, { name: '../coordinator.bin' })
      },
      says: /not of this directory/,
    },
    {
      why: 'a file of another size',
      edit: (m) => {
        Object.assign(m.files[0] ?? {}, { bytes: 1 })
      },
      says: /coordinator\.bin has \d+ bytes instead of 1/,
    },
    {
      why: 'a file that is missing',
      edit: (m) => {
        m.files.push({ name: 'gone.bin', bytes: 1, sha256: '0'.repeat(64) })
      },
      says: /lacks the file gone\.bin/,
    },
  ]
  test.each(edits)('$why', async ({ edit, says }) => {
    const { dir } = await pack('olmoe', { format: 'int8' })
    const path = join(dir, 'manifest.json')
    const manifest = JSON.parse(readFileSync(path, 'utf8'))
    edit(manifest)
    writeFileSync(path, JSON.stringify(manifest))
    expect(() => openPack(dir)).toThrow(says)
    expect(() => openPack(dir)).toThrow(expect.objectContaining({ code: 'PACK_INVALID' }))
  })

  test('no manifest, no directory, no JSON', async () => {
    expect(() => openPack(golden('olmoe'))).toThrow(
      /is not a pack: it has no manifest\.json; make one with "moesh pack/,
    )
    expect(() => openPack(join(work, 'nowhere'))).toThrow(/is not a directory/)
    const { dir } = await pack('olmoe', { format: 'int8' })
    writeFileSync(join(dir, 'manifest.json'), '{')
    expect(() => openPack(dir)).toThrow(/not valid JSON/)
  })

  test('tensors and shards that are not there are named', async () => {
    const reader = await pack('olmoe', { format: 'int8' })
    expect(() => reader.tensor('layers.7.q.q')).toThrow(/no tensor layers\.7\.q\.q/)
    expect(() => reader.shard(0, 16)).toThrow(/no shard L0\/E16/)
    expect(() => reader.readVector('layers.0.q.q')).toThrow(/layers\.0\.q\.q of pack .* is i8, not f32/)
  })
})

describe('where packing refuses to start', () => {
  test('a directory that holds another pack; the same pack is found finished', async () => {
    const { dir, digest } = await pack('olmoe', { format: 'int8' })
    await expect(packCheckpoint(golden('olmoe'), dir, { format: 'int4' })).rejects.toThrow(
      /already holds another pack: olmoe in int8/,
    )
    await expect(packCheckpoint(golden('mixtral'), dir, { format: 'int8' })).rejects.toThrow(
      /already holds another pack/,
    )
    expect(await packCheckpoint(golden('olmoe'), dir, { format: 'int8' })).toMatchObject({ wasFinished: true, digest })
  })

  test('a place where nothing can be written', async () => {
    const file = newDir()
    writeFileSync(file, '')
    await expect(packCheckpoint(golden('llama'), join(file, 'pack'), { format: 'f32' })).rejects.toMatchObject({
      code: 'FILE_UNWRITABLE',
      message: expect.stringMatching(/packing into .* failed: ENOTDIR/),
    })
  })

  test('the checkpoint itself', async () => {
    const dir = newDir()
    cpSync(golden('llama'), dir, { recursive: true })
    await expect(packCheckpoint(dir, dir, { format: 'f32' })).rejects.toThrow(/is the checkpoint itself/)
  })

  test('while another packs there; the lock of a dead process is taken over', async () => {
    const dir = newDir()
    const first = packCheckpoint(golden('olmoe'), dir, { format: 'int8' })
    await expect(packCheckpoint(golden('olmoe'), dir, { format: 'int8' })).rejects.toThrow(
      /is being packed by another process/,
    )
    await first
    const other = newDir()
    mkdirSync(other)
    writeFileSync(join(other, 'pack.lock'), `${(await import('node:os')).hostname()} 999999999`)
    await packCheckpoint(golden('olmoe'), other, { format: 'int8' })
  })

  test('a checkpoint that lacks a tensor, named; nothing looks finished', async () => {
    const source = newDir()
    cpSync(golden('olmoe'), source, { recursive: true })
    const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'))
    writeFileSync(join(source, 'config.json'), JSON.stringify({ ...config, num_experts: 17 }))
    const dir = newDir()
    await expect(packCheckpoint(source, dir, { format: 'int8' })).rejects.toThrow(
      /mlp\.gate\.weight is \[16, 32\], its configuration asks for \[17, 32\]/,
    )
    expect(() => openPack(dir)).toThrow(/unfinished pack/)
  })
})

test('the manifest carries licence, defaults of sampling, tokenizer and licence text', async () => {
  const dir = newDir()
  const { manifest, notice } = await packCheckpoint('models/tales-moe', dir, { format: 'int8', name: 'tales' })
  expect(manifest).toMatchObject({
    name: 'tales',
    license: 'Apache-2.0',
    weightFormat: 'int8',
    generation: { temperature: 0.7, topP: 0.9, topK: null },
    tokenizer: { tokenizerJson: 'tokenizer.json', tokenizerConfigJson: 'tokenizer_config.json' },
    parameters: { total: 4_339_648, active: 1_685_440 },
  })
  expect(manifest.files.map(({ name }) => name)).toContain('LICENSE')
  expect(notice).toBeNull()
  expect((await pack('llama', { format: 'int8' })).manifest).toMatchObject({
    license: 'unknown',
    generation: { temperature: null },
  })
})

test('a cache makes a pack once, and another one for another format', async () => {
  const cache = newDir()
  const first = await packCached(golden('llama'), cache, { format: 'int8', name: '../odd name' })
  const again = await packCached(golden('llama'), cache, { format: 'int8', name: '../odd name' })
  const other = await packCached(golden('llama'), cache, { format: 'int4', name: '../odd name' })
  expect(first.wasFinished).toBe(false)
  expect(again).toMatchObject({ wasFinished: true, packDir: first.packDir })
  expect(other.packDir).not.toBe(first.packDir)
  expect(readdirSync(cache)).toHaveLength(2)
})
