import { describe, expect, test } from 'vitest'
import { weightFormats } from '../../services/model/format.ts'
import { compareExperts, compareLogprobs } from '../support/compare-golden.ts'
import { findGolden, readGolden } from '../support/golden.ts'
import { testPacks } from '../support/packs.ts'
import { runModel } from '../support/running-model.ts'
import { probe } from './device.ts'

/**
 * Experts on a WebGPU device, the rest of the model on the CPU as always. A software device will do: Vulkan's loader
 * finds one by VK_DRIVER_FILES (SwiftShader's lies in Debian's package chromium-common).
 */

const device = probe('webgpu', 'f32')
const pack = testPacks()

describe.skipIf(!device.runs)('webgpu', () => {
  test('equals the reference of a Mixture-of-Experts model: log-probabilities, greedy tokens, experts', async () => {
    const directory = findGolden('olmoe')
    if (directory === null) throw new Error('test/goldens/olmoe is missing')
    const golden = readGolden(directory)
    const topology = { transport: 'shared memory', nodes: 1, ranks: 1, threads: 1, provider: 'webgpu' } as const
    const model = await runModel(await pack(directory, 'f32'), topology)
    try {
      for (const [index, prompt] of golden.prompts.entries()) {
        const result = await model.generate({
          promptIds: prompt.ids,
          sampling: { maxTokens: prompt.greedy.length },
          output: { logprobs: -1, promptLogprobs: -1, expertTrace: true, promptExpertTrace: true },
        })
        expect(result.tokens[0]?.map(({ id }) => id)).toEqual(prompt.greedy)
        compareLogprobs(golden, index, result)
        compareExperts(golden, index, result)
      }
    } finally {
      await model.close()
    }
  })

  test('has a numerics class of its own', () => {
    expect(device).toMatchObject({ numerics: expect.stringMatching(/^webgpu-/) })
  })
})

if (!device.runs) console.warn(`SKIPPED: there is no WebGPU device here: ${device.why}`)

describe.each(['webgpu', 'cuda'] as const)('%s', (provider) => {
  test.each(weightFormats)('runs %s or refuses it by name, and nothing else takes its place', (format) => {
    const seen = probe(provider, format)
    if (seen.runs) expect(seen.numerics).toMatch(new RegExp(`^${provider}-`))
    else expect(seen).toMatchObject({ code: 'PROVIDER_UNAVAILABLE', why: expect.stringContaining(`"${provider}"`) })
  })
})
