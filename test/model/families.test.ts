import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../services/checkpoint/checkpoint.ts'
import { countParameters, type PublishedConfig, publishedModel } from '../../services/model/family.ts'
import type { AttentionSpec, ModelSpec } from '../../services/model/spec.ts'
import { coordinatorTensors, expertTensors } from '../../services/model/tensors.ts'

const goldens = 'test/goldens'
const cases = readdirSync(goldens, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => ({ name, directory: join(goldens, name) }))

function specOf(name: string): ModelSpec {
  const checkpoint = openCheckpoint(cases.find((golden) => golden.name === name)?.directory ?? join(goldens, name))
  checkpoint.close()
  return checkpoint.model.spec
}

function attentionOf(name: string): AttentionSpec {
  const [layer] = specOf(name).layers
  if (!layer) throw new Error(`${name} has no layers`)
  return layer.attention
}

describe.each(cases)('$name', ({ directory }) => {
  test('every tensor of the model is in the checkpoint in its shape, and every tensor there is used', () => {
    const { model, weights, close } = openCheckpoint(directory)
    const used = new Set<string>()
    const find = (names: readonly string[], shape: readonly number[]) => {
      const [inputs = 0, outputs] = shape
      for (const name of names) {
        const share = outputs === undefined ? [inputs / names.length] : [outputs / names.length, inputs]
        weights.tensor(name, share)
        used.add(name)
      }
    }
    for (const { name, kind, shape } of coordinatorTensors(model.spec)) {
      find(model.sources(name).tensors, kind === 'embedding' ? shape.toReversed() : shape)
    }
    for (const [layer, { ffn }] of model.spec.layers.entries()) {
      if (ffn.kind !== 'moe') continue
      for (let expert = 0; expert < ffn.experts; expert++) {
        for (const { name, shape } of expertTensors(model.spec, ffn))
          find(model.expertSources(layer, expert, name).tensors, shape)
      }
    }
    expect([...weights.tensors.keys()].filter((name) => !used.has(name))).toEqual([])
    const elements = [...weights.tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0)
    expect(countParameters(model.spec).total).toBe(elements)
    close()
  })

  test('MoE layers and experts per token are those of the reference', () => {
    const golden: unknown = JSON.parse(readFileSync(join(directory, 'golden.json'), 'utf8'))
    const { model, close } = openCheckpoint(directory)
    close()
    const moe = model.spec.layers.flatMap(({ ffn }, layer) =>
      ffn.kind === 'moe' ? [{ layer, k: ffn.expertsPerToken }] : [],
    )
    expect(golden).toMatchObject({ moe_layers: moe.map(({ layer }) => layer), top_k_experts: moe[0]?.k ?? null })
  })
})

test('the demo model: parameters in all and per token', () => {
  const checkpoint = openCheckpoint('models/tales-moe')
  checkpoint.close()
  expect(countParameters(checkpoint.model.spec)).toEqual({ total: 4_339_648, active: 1_685_440 })
  expect(checkpoint.license).toMatchObject({ license: 'Apache-2.0', isPermissive: true })
})

describe('what each family says of its attention', () => {
  test.each([
    {
      name: 'llama',
      has: { heads: 4, kvHeads: 2, headDim: 12, qkNorm: 'none', clip: null, window: null, qkvBias: false },
    },
    { name: 'llama_tied', has: { headDim: 16, qkvBias: true, outputBias: true } },
    { name: 'mistral_full', has: { headDim: 16, window: null } },
    { name: 'mistral_sliding', has: { window: 16 } },
    { name: 'mixtral', has: { window: null } },
    { name: 'mixtral_sharded_bf16', has: { window: 12, headDim: 8 } },
    { name: 'olmoe', has: { qkNorm: 'full', clip: null } },
    { name: 'olmoe_clip_norm', has: { qkNorm: 'full', clip: 1.2 } },
    { name: 'qwen3', has: { qkNorm: 'head', headDim: 16, window: null, scale: 0.25 } },
    { name: 'qwen3_moe', has: { qkNorm: 'head', headDim: 16, window: null } },
  ])('$name', ({ name, has }) => expect(attentionOf(name)).toMatchObject(has))

  test('experts: whose weights are divided by their sum', () => {
    const normalises = (name: string) =>
      specOf(name).layers.flatMap(({ ffn }) => (ffn.kind === 'moe' ? ffn.router.normalise : []))
    expect(normalises('mixtral')).toEqual([true, true, true])
    expect(normalises('olmoe')).toEqual([false, false, false])
    expect(normalises('olmoe_clip_norm')).toEqual([true, true, true])
    expect(normalises('qwen3_moe_mixed_layers')).toEqual([false])
  })
})

function config(values: Record<string, unknown>, rope: Partial<PublishedConfig['rope']> = {}): PublishedConfig {
  const modelType = typeof values.model_type === 'string' ? values.model_type : null
  return {
    path: 'config.json',
    modelType,
    architectures: [],
    rope: { theta: null, type: 'default', parameters: {}, ...rope },
    values,
  }
}

describe('keys that equal a default may be missing', () => {
  test.each([
    {
      model_type: 'llama',
      has: { hidden: 4096, vocabulary: 32000, contextLength: 2048, normEps: 1e-6, eosTokenIds: [2] },
    },
    {
      model_type: 'mistral',
      has: {
        contextLength: 131072,
        layers: expect.arrayContaining([
          expect.objectContaining({ attention: expect.objectContaining({ kvHeads: 8, window: 4096 }) }),
        ]),
      },
    },
    {
      model_type: 'mixtral',
      has: {
        normEps: 1e-5,
        layers: expect.arrayContaining([
          expect.objectContaining({ ffn: expect.objectContaining({ experts: 8, expertsPerToken: 2 }) }),
        ]),
      },
    },
    { model_type: 'olmoe', has: { vocabulary: 50304, eosTokenIds: [50279], bosTokenId: null } },
    {
      model_type: 'qwen3',
      has: {
        layers: expect.arrayContaining([
          expect.objectContaining({ attention: expect.objectContaining({ headDim: 128, kvHeads: 32 }) }),
        ]),
      },
    },
    {
      model_type: 'qwen3_moe',
      has: {
        layers: expect.arrayContaining([
          expect.objectContaining({ ffn: expect.objectContaining({ experts: 128, inner: 768 }) }),
        ]),
      },
    },
  ])('$model_type', ({ model_type, has }) => expect(publishedModel(config({ model_type })).spec).toMatchObject(has))

  test('null is not missing: no window, as many key-value heads as heads', () => {
    const { spec } = publishedModel(config({ model_type: 'mistral', sliding_window: null, num_key_value_heads: null }))
    expect(spec.layers[0]?.attention).toMatchObject({ window: null, kvHeads: 32 })
  })

  test('mixtral turns its heads slower than the others', () => {
    const frequency = (model_type: string) =>
      publishedModel(config({ model_type })).spec.layers[0]?.attention.rope.inverseFrequencies.at(-1) ?? 0
    expect(frequency('mixtral')).toBeCloseTo(1e6 ** (-126 / 128), 10)
    expect(frequency('mistral')).toBeCloseTo(1e4 ** (-126 / 128), 10)
  })
})

describe('windows of qwen3', () => {
  const windows = (values: Record<string, unknown>) =>
    publishedModel(config({ model_type: 'qwen3', num_hidden_layers: 4, ...values })).spec.layers.map(
      ({ attention }) => attention.window,
    )
  test.each([
    {
      why: 'off although a size is given',
      values: { use_sliding_window: false, sliding_window: 8, max_window_layers: 2 },
      expected: [null, null, null, null],
    },
    {
      why: 'from max_window_layers on',
      values: { use_sliding_window: true, sliding_window: 8, max_window_layers: 2 },
      expected: [null, null, 8, 8],
    },
    {
      why: 'by kinds of layers',
      values: {
        use_sliding_window: true,
        sliding_window: 8,
        layer_types: ['sliding_attention', 'full_attention', 'full_attention', 'sliding_attention'],
      },
      expected: [8, null, null, 8],
    },
  ])('$why', ({ values, expected }) => expect(windows(values)).toEqual(expected))

  test('qwen3_moe has the window in all layers', () => {
    const { spec } = publishedModel(
      config({ model_type: 'qwen3_moe', num_hidden_layers: 2, use_sliding_window: true, sliding_window: 8 }),
    )
    expect(spec.layers.map(({ attention }) => attention.window)).toEqual([8, 8])
  })
})

describe('rope scaling', () => {
  const frequencies = (rope: Partial<PublishedConfig['rope']>) =>
    publishedModel(config({ model_type: 'llama', hidden_size: 32, num_attention_heads: 2 }, rope)).spec.layers[0]
      ?.attention.rope.inverseFrequencies ?? []
  const plain = frequencies({})

  test('linear divides all frequencies', () => {
    expect(frequencies({ type: 'linear', parameters: { factor: 4 } })).toEqual(plain.map((frequency) => frequency / 4))
  })

  test('llama3 leaves short waves, divides long ones, and blends between', () => {
    const parameters = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 }
    const scaled = frequencies({ type: 'llama3', parameters })
    for (const [i, frequency] of plain.entries()) {
      const wavelength = (2 * Math.PI) / frequency
      const ratio = frequency / (scaled[i] ?? 0)
      if (wavelength < 16) expect(ratio).toBe(1)
      else if (wavelength > 64) expect(ratio).toBe(8)
      else expect(ratio).toBeGreaterThan(1)
    }
    // Two waves lie between, so that the blend was taken.
    expect(scaled.filter((frequency, i) => frequency !== plain[i] && frequency !== (plain[i] ?? 0) / 8)).toHaveLength(2)
  })
})

test('a missing tensor is named', () => {
  const checkpoint = openCheckpoint(join(goldens, 'llama'))
  expect(() => checkpoint.weights.tensor('model.layers.9.mlp.up_proj.weight')).toThrow(
    /no tensor model\.layers\.9\.mlp\.up_proj\.weight/,
  )
  expect(() => checkpoint.weights.tensor('model.norm.weight', [47])).toThrow(
    /model\.norm\.weight is \[48\], its configuration asks for \[47\]/,
  )
  checkpoint.close()
})
