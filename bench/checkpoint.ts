import { closeSync, existsSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { fillFrom, normalTable, streamFor } from './random.ts'
import type { BenchShape } from './shape.ts'
import { endOfTextToken, makeVocabulary, tokenizerJson } from './vocabulary.ts'

/** Names directories: a change of what is written takes another one, so that nobody measures with old weights. */
const generator = 'v2'

/** Elements made and written at once: 4 MiB, so that both stay in a cache. */
const chunkElements = 2 * 1024 * 1024

type Kind = 'linear' | 'embedding' | 'norm'
type TensorPlan = { name: string; shape: [number] | [number, number]; kind: Kind }
type ShardPlan = { file: string; tensors: TensorPlan[] }

/**
 * Values as after a usual initialisation, but for embeddings: those are large, so that the token decides which experts
 * it gets. With small ones, what attention mixes together drowns the token, rows of one prompt look alike, and the
 * busiest expert of the last layer got 7 times the mean of a prompt's rows; now it gets 2 times, as by chance, and 16
 * sequences wake 56 of 64 experts. Trained routers are balanced as well.
 */
const distributions: Record<Kind, { mean: number; deviation: number }> = {
  linear: { mean: 0, deviation: 0.02 },
  embedding: { mean: 0, deviation: 2 },
  norm: { mean: 1, deviation: 0.02 },
}

/** Where everything of a shape and seed lies: checkpoint, packs, files of the peer. */
export function modelDirectory(cacheDir: string, shape: BenchShape, seed: number): string {
  return join(cacheDir, `${shape.name}-seed${seed}-${generator}`)
}

/**
 * Writes a checkpoint of random bfloat16 weights as published ones look (config, tokenizer, safetensors, a shard a
 * layer), or finds the one that is there. The same seed gives the same bytes. Returns its directory.
 */
export function ensureCheckpoint(
  cacheDir: string,
  shape: BenchShape,
  seed: number,
  onProgress: (writtenBytes: number, totalBytes: number) => void = () => {},
): string {
  const directory = join(modelDirectory(cacheDir, shape, seed), shape.name)
  // It got its name when it was complete.
  if (existsSync(directory)) return directory
  const partial = `${directory}.partial`
  rmSync(partial, { recursive: true, force: true })
  mkdirSync(partial, { recursive: true })
  writeCheckpoint(partial, shape, seed, onProgress)
  renameSync(partial, directory)
  return directory
}

function writeCheckpoint(
  directory: string,
  shape: BenchShape,
  seed: number,
  onProgress: (writtenBytes: number, totalBytes: number) => void,
): void {
  const shards = planShards(shape)
  const totalBytes = shards.reduce(
    (sum, { tensors }) => sum + tensors.reduce((bytes, tensor) => bytes + tensorBytes(tensor), 0),
    0,
  )
  const tables = {
    linear: normalTable(distributions.linear.mean, distributions.linear.deviation),
    embedding: normalTable(distributions.embedding.mean, distributions.embedding.deviation),
    norm: normalTable(distributions.norm.mean, distributions.norm.deviation),
  }
  const chunk = new Uint16Array(chunkElements)
  let written = 0
  for (const { file, tensors } of shards) {
    const fd = openSync(join(directory, file), 'w')
    try {
      writeAll(fd, safetensorsHeader(tensors))
      for (const tensor of tensors) {
        const stream = streamFor(seed, tensor.name)
        const elements = tensorBytes(tensor) / 2
        for (let done = 0; done < elements; done += chunkElements) {
          const part = chunk.subarray(0, Math.min(chunkElements, elements - done))
          fillFrom(tables[tensor.kind], stream, part)
          writeAll(fd, new Uint8Array(part.buffer, 0, part.byteLength))
          written += part.byteLength
          onProgress(written, totalBytes)
        }
      }
    } finally {
      closeSync(fd)
    }
  }
  const weightMap = Object.fromEntries(shards.flatMap(({ file, tensors }) => tensors.map(({ name }) => [name, file])))
  const writeJson = (name: string, value: object) =>
    writeFileSync(join(directory, name), `${JSON.stringify(value, null, 1)}\n`)
  writeJson('model.safetensors.index.json', { metadata: { total_size: totalBytes }, weight_map: weightMap })
  const vocabulary = makeVocabulary(shape.vocabulary)
  writeJson('tokenizer.json', tokenizerJson(vocabulary))
  writeJson('tokenizer_config.json', {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: null,
    eos_token: endOfTextToken,
    clean_up_tokenization_spaces: false,
    model_max_length: shape.contextLength,
  })
  writeJson('config.json', configOf(shape, vocabulary.endOfText))
  writeFileSync(join(directory, 'README.md'), '---\nlicense: cc0-1.0\n---\n\nRandom weights, for measuring speed.\n')
}

function configOf(shape: BenchShape, endOfText: number): object {
  return {
    architectures: ['OlmoeForCausalLM'],
    model_type: 'olmoe',
    hidden_size: shape.hidden,
    intermediate_size: shape.expertInner,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.heads,
    num_experts: shape.experts,
    num_experts_per_tok: shape.expertsPerToken,
    norm_topk_prob: false,
    hidden_act: 'silu',
    attention_bias: false,
    clip_qkv: null,
    max_position_embeddings: shape.contextLength,
    rope_theta: shape.ropeTheta,
    rms_norm_eps: shape.normEps,
    tie_word_embeddings: false,
    vocab_size: shape.vocabulary,
    bos_token_id: null,
    eos_token_id: endOfText,
    torch_dtype: 'bfloat16',
  }
}

/** Linear weights are [outputs, inputs], as published. */
function planShards(shape: BenchShape): ShardPlan[] {
  const { hidden, expertInner, experts, layers, vocabulary } = shape
  const linear = (name: string, outputs: number, inputs: number): TensorPlan => ({
    name,
    shape: [outputs, inputs],
    kind: 'linear',
  })
  const norm = (name: string): TensorPlan => ({ name, shape: [hidden], kind: 'norm' })
  const layerTensors = Array.from({ length: layers }, (_, layer): TensorPlan[] => {
    const prefix = `model.layers.${layer}`
    const expertTensors = Array.from({ length: experts }, (_, expert) => [
      linear(`${prefix}.mlp.experts.${expert}.gate_proj.weight`, expertInner, hidden),
      linear(`${prefix}.mlp.experts.${expert}.up_proj.weight`, expertInner, hidden),
      linear(`${prefix}.mlp.experts.${expert}.down_proj.weight`, hidden, expertInner),
    ])
    return [
      norm(`${prefix}.input_layernorm.weight`),
      norm(`${prefix}.post_attention_layernorm.weight`),
      norm(`${prefix}.self_attn.q_norm.weight`),
      norm(`${prefix}.self_attn.k_norm.weight`),
      linear(`${prefix}.self_attn.q_proj.weight`, hidden, hidden),
      linear(`${prefix}.self_attn.k_proj.weight`, hidden, hidden),
      linear(`${prefix}.self_attn.v_proj.weight`, hidden, hidden),
      linear(`${prefix}.self_attn.o_proj.weight`, hidden, hidden),
      linear(`${prefix}.mlp.gate.weight`, experts, hidden),
      ...expertTensors.flat(),
    ]
  })
  const outer: TensorPlan[] = [
    { name: 'model.embed_tokens.weight', shape: [vocabulary, hidden], kind: 'embedding' },
    norm('model.norm.weight'),
    linear('lm_head.weight', vocabulary, hidden),
  ]
  const groups = [outer, ...layerTensors]
  const number = (value: number) => String(value).padStart(5, '0')
  return groups.map((tensors, index) => ({
    file: `model-${number(index + 1)}-of-${number(groups.length)}.safetensors`,
    tensors,
  }))
}

function tensorBytes({ shape }: TensorPlan): number {
  return shape.reduce((product, axis) => product * axis, 2)
}

/** The length of the JSON in eight bytes, then the JSON, padded so that the weights are aligned. */
function safetensorsHeader(tensors: readonly TensorPlan[]): Buffer {
  let offset = 0
  const entries = tensors.map((tensor) => {
    const begin = offset
    offset += tensorBytes(tensor)
    return [tensor.name, { dtype: 'BF16', shape: tensor.shape, data_offsets: [begin, offset] }] as const
  })
  const json = JSON.stringify(Object.fromEntries(entries))
  const text = Buffer.from(json.padEnd(Math.ceil(json.length / 64) * 64 - 8 + 64, ' '))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text])
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done)
}
