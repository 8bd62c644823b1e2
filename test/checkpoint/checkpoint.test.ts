import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../services/checkpoint/checkpoint.ts'
import { readGeneration } from '../../services/checkpoint/generation.ts'
import { findLicense, readModelCard } from '../../services/checkpoint/license.ts'
import { findTokenizerFiles } from '../../services/checkpoint/tokenizer-files.ts'

let directory = ''
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'moesh-checkpoint-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))
beforeEach(() => {
  rmSync(directory, { recursive: true, force: true })
  cpSync('test/goldens/qwen3_moe', directory, { recursive: true })
})

function put(name: string, content: unknown): void {
  writeFileSync(join(directory, name), typeof content === 'string' ? content : JSON.stringify(content))
}

function editConfig(changes: Record<string, unknown>): void {
  const config: Record<string, unknown> = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'))
  put('config.json', { ...config, ...changes })
}

describe('a checkpoint that cannot be served says why', () => {
  test.each([
    {
      why: 'an unknown architecture',
      change: { model_type: 'rwkv', architectures: ['RwkvForCausalLM'] },
      says: /model_type rwkv.*supported are LlamaForCausalLM, .*Qwen3MoeForCausalLM/,
    },
    {
      why: 'a classifier of a known family',
      change: { architectures: ['Qwen3MoeForSequenceClassification'] },
      says: /Qwen3MoeForSequenceClassification is not supported/,
    },
    {
      why: 'an unsupported rope type',
      change: { rope_scaling: { rope_type: 'yarn', factor: 4 } },
      says: /rope type yarn is not supported; supported are default, linear, llama3/,
    },
    {
      why: 'the same in the older spelling',
      change: { rope_scaling: { type: 'dynamic', factor: 4 } },
      says: /rope type dynamic is not supported/,
    },
    {
      why: 'a rope type from the prototype',
      change: { rope_scaling: { type: 'toString' } },
      says: /rope type toString is not supported/,
    },
    {
      why: 'a scaling without its factor',
      change: { rope_scaling: { type: 'linear' } },
      says: /rope scaling linear: factor/,
    },
    {
      why: 'rope parameters by kind of layer',
      change: { rope_parameters: { full_attention: { rope_theta: 1 } } },
      says: /by kind of layer \(full_attention\)/,
    },
    { why: 'heads that are no fours', change: { head_dim: 18 }, says: /heads of 18 numbers are not supported/ },
    { why: 'an unsupported activation', change: { hidden_act: 'relu2' }, says: /hidden_act relu2 is not supported/ },
    {
      why: 'a quantised checkpoint',
      change: { quantization_config: { quant_method: 'fp8' } },
      says: /quantised by fp8/,
    },
    { why: 'a size that is no number', change: { hidden_size: 'big' }, says: /config\.json: hidden_size/ },
    { why: 'a negative size', change: { num_hidden_layers: -1 }, says: /num_hidden_layers/ },
    { why: 'too many layers', change: { num_hidden_layers: 100000 }, says: /num_hidden_layers: more than 1024/ },
    {
      why: 'heads that cannot be grouped',
      change: { num_key_value_heads: 3 },
      says: /num_attention_heads \(4\) is no multiple of num_key_value_heads \(3\)/,
    },
    {
      why: 'more experts a token than there are',
      change: { num_experts_per_tok: 9 },
      says: /num_experts_per_tok \(9\) exceeds/,
    },
    { why: 'partial rotation', change: { partial_rotary_factor: 0.5 }, says: /partial_rotary_factor 0\.5/ },
  ])('$why', ({ change, says }) => {
    editConfig(change)
    expect(() => openCheckpoint(directory)).toThrow(says)
  })

  test.each([
    { why: 'no config', remove: 'config.json', says: /config\.json does not exist/ },
    {
      why: 'no weights',
      remove: 'model.safetensors',
      says: /neither model\.safetensors nor model\.safetensors\.index\.json/,
    },
  ])('$why', ({ remove, says }) => {
    rmSync(join(directory, remove))
    expect(() => openCheckpoint(directory)).toThrow(says)
  })

  test('weights in another format', () => {
    for (const name of ['model.safetensors', 'golden.safetensors']) rmSync(join(directory, name))
    put('pytorch_model.bin', '')
    expect(() => openCheckpoint(directory)).toThrow(/only safetensors weights are read/)
  })

  test('JSON that is none', () => {
    put('config.json', '{')
    expect(() => openCheckpoint(directory)).toThrow(/config\.json is not valid JSON/)
  })

  test('a directory that is none', () => {
    expect(() => openCheckpoint(join(directory, 'nowhere'))).toThrow(/is not a directory/)
  })
})

test('both styles of a config give the same model', () => {
  const hub = openCheckpoint(directory)
  editConfig({
    rope_theta: undefined,
    rope_scaling: undefined,
    torch_dtype: undefined,
    num_experts: undefined,
    rope_parameters: { rope_theta: 1000000, rope_type: 'default' },
    dtype: 'float32',
    num_local_experts: 8,
  })
  const v5 = openCheckpoint(directory)
  expect(v5.model.spec).toEqual(hub.model.spec)
  hub.close()
  v5.close()
})

test('the fingerprint follows the content; its strict form the times of the weights, too', () => {
  const fingerprints = () => {
    const checkpoint = openCheckpoint(directory)
    checkpoint.close()
    return [checkpoint.contentFingerprint, checkpoint.fingerprint]
  }
  const [content, strict] = fingerprints()
  expect(fingerprints()).toEqual([content, strict])
  cpSync('test/goldens/qwen3_moe/model.safetensors', join(directory, 'model.safetensors'))
  const [sameContent, otherTime] = fingerprints()
  expect(sameContent).toBe(content)
  expect(otherTime).not.toBe(strict)
  put('generation_config.json', { eos_token_id: 3 })
  expect(fingerprints()[0]).not.toBe(content)
})

describe('generation defaults', () => {
  test.each([
    {
      why: 'nothing said',
      values: {},
      sampling: { temperature: null, topP: null, topK: null, minP: null, repetitionPenalty: null },
    },
    {
      why: 'all said',
      values: { temperature: 0.6, top_p: 0.9, top_k: 20, min_p: 0.05, repetition_penalty: 1.1 },
      sampling: { temperature: 0.6, topP: 0.9, topK: 20, minP: 0.05, repetitionPenalty: 1.1 },
    },
    {
      why: 'not sampling is greedy',
      values: { do_sample: false, temperature: 0.6 },
      sampling: { temperature: 0, topP: null, topK: null, minP: null, repetitionPenalty: null },
    },
    {
      why: 'a top-k of -1 is off',
      values: { top_k: -1 },
      sampling: { temperature: null, topP: null, topK: 0, minP: null, repetitionPenalty: null },
    },
  ])('$why', ({ values, sampling }) => {
    put('generation_config.json', values)
    expect(readGeneration(directory).sampling).toEqual(sampling)
  })

  test('several ends of a text win over the one in config.json', () => {
    put('generation_config.json', { eos_token_id: [2, 4] })
    const checkpoint = openCheckpoint(directory)
    expect(checkpoint.model.spec.eosTokenIds).toEqual([2, 4])
    checkpoint.close()
  })
})

describe('licences', () => {
  const card = (matter: string) => `---\n${matter}\n---\n# Model\n`
  test.each([
    {
      why: 'a model card',
      files: { 'README.md': card('license: apache-2.0') },
      license: 'Apache-2.0',
      isPermissive: true,
      evidence: 'README.md',
    },
    {
      why: 'a named other licence',
      files: { 'README.md': card('license: other\nlicense_name: qwen-research') },
      license: 'qwen-research',
      isPermissive: false,
      evidence: 'README.md',
    },
    {
      why: 'a non-commercial licence',
      files: { 'README.md': card('license: cc-by-nc-4.0') },
      license: 'CC-BY-NC-4.0',
      isPermissive: false,
      evidence: 'README.md',
    },
    {
      why: 'a choice of two',
      files: { 'README.md': card('license: [mit, gpl-3.0]') },
      license: 'MIT OR GPL-3.0',
      isPermissive: true,
      evidence: 'README.md',
    },
    {
      why: 'a licence text',
      files: { LICENSE: 'Apache License\nVersion 2.0, January 2004' },
      license: 'Apache-2.0',
      isPermissive: true,
      evidence: 'LICENSE',
    },
    {
      why: 'a community licence',
      files: { 'LICENSE.txt': 'LLAMA 3.1 COMMUNITY LICENSE AGREEMENT' },
      license: 'llama3.1',
      isPermissive: false,
      evidence: 'LICENSE.txt',
    },
    {
      why: 'a card that is no YAML',
      files: { 'README.md': card('license: [') },
      license: 'unknown',
      isPermissive: false,
      evidence: null,
    },
    { why: 'nothing', files: {}, license: 'unknown', isPermissive: false, evidence: null },
  ])('$why', ({ files, license, isPermissive, evidence }) => {
    for (const [name, content] of Object.entries(files)) put(name, content)
    const found = findLicense(directory, readModelCard(directory), {})
    expect(found).toMatchObject({ license, isPermissive, evidence })
    expect(found.notice === null).toBe(isPermissive)
  })
})

describe('chat templates', () => {
  test('a file of its own wins over the tokenizer configuration', () => {
    put('chat_template.jinja', '{{ 1 }}')
    expect(findTokenizerFiles(directory).chatTemplate).toBe('{{ 1 }}')
  })

  test('of several the one called default', () => {
    put('tokenizer_config.json', {
      chat_template: [
        { name: 'tool_use', template: 'a' },
        { name: 'default', template: 'b' },
      ],
    })
    expect(findTokenizerFiles(directory).chatTemplate).toBe('b')
  })

  test('a sentencepiece model alone is not enough', () => {
    rmSync(join(directory, 'tokenizer.json'))
    put('tokenizer.model', '')
    expect(() => findTokenizerFiles(directory)).toThrow(/no tokenizer\.json/)
  })
})
