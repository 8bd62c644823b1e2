import { fork } from 'node:child_process'
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { formatBytes, formatSeconds } from '../services/cli/bytes.ts'
import { ProgressBar } from '../services/cli/progress.ts'
import { type WeightFormat, weightFormats } from '../services/model/format.ts'
import { packCheckpoint } from '../services/pack/pack.ts'

/**
 * Packs a synthetic checkpoint of 4 GB (a vocabulary of 128k, experts as wide as Mixtral's) and prints the peak of the
 * packing process's resident memory and its speed, format by format. Needs about 13 GB of disk, all given back:
 *
 *   node bin/run.mjs bench/pack-memory.ts [--dir DIR] [--formats f32,int8,int4]
 */

const hidden = 4096
const inner = 14336
const vocabulary = 128 * 1024
const experts = 6
const config = {
  architectures: ['MixtralForCausalLM'],
  model_type: 'mixtral',
  hidden_size: hidden,
  intermediate_size: inner,
  num_hidden_layers: 1,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  num_local_experts: experts,
  vocab_size: vocabulary,
  torch_dtype: 'bfloat16',
}

function tensorShapes(): [name: string, shape: number[]][] {
  const layer = 'model.layers.0'
  const attention: [string, number[]][] = [
    [`${layer}.input_layernorm.weight`, [hidden]],
    [`${layer}.post_attention_layernorm.weight`, [hidden]],
    [`${layer}.self_attn.q_proj.weight`, [hidden, hidden]],
    [`${layer}.self_attn.k_proj.weight`, [hidden / 4, hidden]],
    [`${layer}.self_attn.v_proj.weight`, [hidden / 4, hidden]],
    [`${layer}.self_attn.o_proj.weight`, [hidden, hidden]],
    [`${layer}.block_sparse_moe.gate.weight`, [experts, hidden]],
  ]
  const ffn = Array.from({ length: experts }, (_, expert): [string, number[]][] => {
    const prefix = `${layer}.block_sparse_moe.experts.${expert}`
    return [
      [`${prefix}.w1.weight`, [inner, hidden]],
      [`${prefix}.w2.weight`, [hidden, inner]],
      [`${prefix}.w3.weight`, [inner, hidden]],
    ]
  })
  return [
    ['model.embed_tokens.weight', [vocabulary, hidden]],
    ...attention,
    ...ffn.flat(),
    ['model.norm.weight', [hidden]],
    ['lm_head.weight', [vocabulary, hidden]],
  ]
}

/** Bell-shaped bfloat16 weights, repeated: speed and memory do not depend on their values. */
function weights(count: number): Uint16Array {
  const floats = new Float32Array(count)
  let state = 1
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32 - 0.5
  }
  for (let i = 0; i < count; i++) floats[i] = 0.05 * (next() + next() + next())
  return Uint16Array.from(new Uint32Array(floats.buffer), (word) => word >>> 16)
}

function writeCheckpoint(dir: string): number {
  mkdirSync(dir)
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config))
  const header: Record<string, unknown> = {}
  let bytes = 0
  for (const [name, shape] of tensorShapes()) {
    const size = shape.reduce((product, axis) => product * axis, 2)
    header[name] = { dtype: 'BF16', shape, data_offsets: [bytes, bytes + size] }
    bytes += size
  }
  const json = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const piece = Buffer.from(weights(4 * 1024 * 1024 + 13).buffer)
  const fd = openSync(join(dir, 'model.safetensors'), 'w')
  writeSync(fd, length)
  writeSync(fd, json)
  for (let done = 0; done < bytes; done += piece.length) writeSync(fd, piece, 0, Math.min(piece.length, bytes - done))
  closeSync(fd)
  return bytes
}

/** In a process of its own, so that the peak is packing's alone. */
async function packAndReport(checkpoint: string, pack: string, format: WeightFormat): Promise<void> {
  const bar = new ProgressBar(format, process.stderr)
  const startMs = performance.now()
  const { manifest } = await packCheckpoint(checkpoint, pack, {
    format,
    onProgress: (progress) => bar.update(progress),
  })
  bar.end()
  const seconds = (performance.now() - startMs) / 1000
  const written = manifest.files.reduce((sum, { bytes }) => sum + bytes, 0)
  process.send?.({ seconds, written, peakBytes: process.resourceUsage().maxRSS * 1024 })
}

type Report = { seconds: number; written: number; peakBytes: number }

function runChild(checkpoint: string, pack: string, format: WeightFormat): Promise<Report> {
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(import.meta.url), ['--pack', checkpoint, '--dir', pack, '--formats', format])
    child.once('message', (report) => resolve(report as Report))
    child.once('error', reject)
    child.once('exit', (code) => reject(new Error(`packing ended with ${code}`)))
  })
}

const { values } = parseArgs({
  options: {
    dir: { type: 'string', default: tmpdir() },
    formats: { type: 'string', default: 'f32,int8,int4' },
    pack: { type: 'string' },
  },
})
const formats = values.formats.split(',').map((name) => {
  const format = weightFormats.find((known) => known === name)
  if (format === undefined) throw new Error(`no format ${name}`)
  return format
})

if (values.pack !== undefined) {
  await packAndReport(values.pack, values.dir, formats[0] ?? 'int8')
} else {
  const work = mkdtempSync(join(values.dir, 'moesh-pack-memory-'))
  try {
    const checkpoint = join(work, 'checkpoint')
    const bytes = writeCheckpoint(checkpoint)
    process.stdout.write(`checkpoint: ${formatBytes(bytes)} of bfloat16\n`)
    for (const format of formats) {
      const pack = join(work, format)
      const { seconds, written, peakBytes } = await runChild(checkpoint, pack, format)
      process.stdout.write(
        `${format}: ${formatBytes(written)} in ${formatSeconds(seconds)}, ${formatBytes(bytes / seconds)}/s read, peak ${formatBytes(peakBytes)} resident\n`,
      )
      rmSync(pack, { recursive: true })
    }
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}
