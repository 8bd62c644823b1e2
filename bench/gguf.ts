import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openCheckpoint } from '../services/checkpoint/checkpoint.ts'
import type { Weights } from '../services/checkpoint/weights.ts'
import { convertToGgml, type GgmlFormat, ggmlBytes } from './ggml-blocks.ts'
import { type GgufTensor, type GgufValue, writeGguf } from './gguf-file.ts'
import type { BenchShape } from './shape.ts'
import { endOfTextToken, makeVocabulary } from './vocabulary.ts'

export type PeerFormat = 'Q8_0' | 'Q4_0'

/** `general.file_type`: which format most tensors have. */
const fileTypes: Record<PeerFormat, number> = { Q4_0: 2, Q8_0: 7 }

/** Elements converted at once. */
const chunkElements = 1024 * 1024

/**
 * The checkpoint's weights as the peer reads them: all matrices in `format` (also embedding and head: the fastest
 * choice), routers and norms in f32. Made on the first call, found on the next. Returns the file.
 */
export function ensureGguf(
  directory: string,
  checkpointDir: string,
  shape: BenchShape,
  format: PeerFormat,
  onProgress: (writtenBytes: number, totalBytes: number) => void = () => {},
): string {
  const path = join(directory, `${shape.name}-${format.toLowerCase()}.gguf`)
  if (existsSync(path)) return path
  const checkpoint = openCheckpoint(checkpointDir)
  try {
    writeGguf(path, metadataOf(shape, format), tensorsOf(shape, format, checkpoint.weights), onProgress)
  } finally {
    checkpoint.close()
  }
  return path
}

function metadataOf(shape: BenchShape, format: PeerFormat): Record<string, GgufValue> {
  const vocabulary = makeVocabulary(shape.vocabulary)
  const u32 = (value: number): GgufValue => ({ kind: 'u32', value })
  const [normal, control] = [1, 3]
  return {
    'general.architecture': { kind: 'text', value: 'olmoe' },
    'general.name': { kind: 'text', value: shape.name },
    'general.file_type': u32(fileTypes[format]),
    'general.quantization_version': u32(2),
    'olmoe.vocab_size': u32(shape.vocabulary),
    'olmoe.context_length': u32(shape.contextLength),
    'olmoe.embedding_length': u32(shape.hidden),
    'olmoe.block_count': u32(shape.layers),
    'olmoe.feed_forward_length': u32(shape.expertInner),
    'olmoe.attention.head_count': u32(shape.heads),
    'olmoe.attention.head_count_kv': u32(shape.heads),
    'olmoe.attention.layer_norm_rms_epsilon': { kind: 'f32', value: shape.normEps },
    'olmoe.rope.freq_base': { kind: 'f32', value: shape.ropeTheta },
    'olmoe.expert_count': u32(shape.experts),
    'olmoe.expert_used_count': u32(shape.expertsPerToken),
    'tokenizer.ggml.model': { kind: 'text', value: 'gpt2' },
    'tokenizer.ggml.pre': { kind: 'text', value: 'gpt-2' },
    'tokenizer.ggml.tokens': { kind: 'texts', value: vocabulary.tokens },
    'tokenizer.ggml.token_type': {
      kind: 'i32s',
      value: vocabulary.tokens.map((token) => (token === endOfTextToken ? control : normal)),
    },
    'tokenizer.ggml.merges': { kind: 'texts', value: vocabulary.merges.map((halves) => halves.join(' ')) },
    'tokenizer.ggml.eos_token_id': u32(vocabulary.endOfText),
    'tokenizer.ggml.add_bos_token': { kind: 'bool', value: false },
  }
}

function tensorsOf(shape: BenchShape, format: PeerFormat, weights: Weights): GgufTensor[] {
  const { hidden, vocabulary } = shape
  const matrix = (name: string, source: string, rows: number, columns: number) =>
    tensor(weights, name, format, [rows, columns], [source])
  const norm = (name: string, source: string) => tensor(weights, name, 'F32', [hidden], [source])
  const layers = Array.from({ length: shape.layers }, (_, layer) => layerTensors(shape, format, weights, layer))
  return [
    matrix('token_embd.weight', 'model.embed_tokens.weight', vocabulary, hidden),
    ...layers.flat(),
    norm('output_norm.weight', 'model.norm.weight'),
    matrix('output.weight', 'lm_head.weight', vocabulary, hidden),
  ]
}

function layerTensors(shape: BenchShape, format: PeerFormat, weights: Weights, layer: number): GgufTensor[] {
  const { hidden, expertInner, experts } = shape
  const to = `blk.${layer}`
  const from = `model.layers.${layer}`
  const norm = (name: string, source: string) =>
    tensor(weights, `${to}.${name}.weight`, 'F32', [hidden], [`${from}.${source}.weight`])
  const attention = (name: string, source: string) =>
    tensor(weights, `${to}.${name}.weight`, format, [hidden, hidden], [`${from}.self_attn.${source}.weight`])
  /** The matrices of all experts, one behind the other. */
  const stacked = (name: string, source: string, rows: number, columns: number) =>
    tensor(
      weights,
      `${to}.${name}.weight`,
      format,
      [experts, rows, columns],
      Array.from({ length: experts }, (_, expert) => `${from}.mlp.experts.${expert}.${source}.weight`),
    )
  return [
    norm('attn_norm', 'input_layernorm'),
    attention('attn_q', 'q_proj'),
    attention('attn_k', 'k_proj'),
    attention('attn_v', 'v_proj'),
    attention('attn_output', 'o_proj'),
    norm('attn_q_norm', 'self_attn.q_norm'),
    norm('attn_k_norm', 'self_attn.k_norm'),
    norm('ffn_norm', 'post_attention_layernorm'),
    tensor(weights, `${to}.ffn_gate_inp.weight`, 'F32', [experts, hidden], [`${from}.mlp.gate.weight`]),
    stacked('ffn_gate_exps', 'gate_proj', expertInner, hidden),
    stacked('ffn_down_exps', 'down_proj', hidden, expertInner),
    stacked('ffn_up_exps', 'up_proj', expertInner, hidden),
  ]
}

/** A tensor of the file, made of one or more of the checkpoint, in order. */
function tensor(
  weights: Weights,
  name: string,
  format: GgmlFormat,
  shape: readonly number[],
  sources: readonly string[],
): GgufTensor {
  return {
    name,
    format,
    shape,
    produce(write) {
      const floats = new Float32Array(chunkElements)
      const bytes = new Uint8Array(ggmlBytes(format, chunkElements))
      for (const source of sources) {
        const found = weights.tensor(source)
        const elements = found.shape.reduce((product, axis) => product * axis, 1)
        for (let done = 0; done < elements; done += chunkElements) {
          const count = Math.min(chunkElements, elements - done)
          weights.readFloats(found, done, count, floats)
          const converted = bytes.subarray(0, ggmlBytes(format, count))
          convertToGgml(format, floats.subarray(0, count), converted)
          write(converted)
        }
      }
    },
  }
}
