import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { weightFormats } from '../../services/model/format.ts'
import { proveRowInvariance } from '../../services/runtime/canary.ts'
import { compareModel } from '../support/compare-golden.ts'
import { goldenDirectory, readGolden } from '../support/golden.ts'
import { testPacks } from '../support/packs.ts'
import { runModel, type Topology } from '../support/running-model.ts'
import { probe } from './device.ts'

/**
 * Experts on a device, the rest of the model on the CPU as always. For WebGPU a device in software will do: Vulkan's
 * loader finds one by VK_DRIVER_FILES (SwiftShader's lies in Debian's package chromium-common).
 */

const pack = testPacks()
const directory = goldenDirectory('olmoe')
const stageDir = mkdtempSync(join(tmpdir(), 'moesh-gpu-test-'))
afterAll(() => rmSync(stageDir, { recursive: true, force: true }))

describe.each(['webgpu', 'cuda'] as const)('%s', (provider) => {
  const device = probe(provider, 'f32')
  if (!device.runs) console.warn(`SKIPPED: "${provider}" can't run here: ${device.why}`)
  const one: Topology = { transport: 'shared memory', nodes: 1, ranks: 1, threads: 1, provider }

  test.runIf(device.runs)('equals the reference: log-probabilities, greedy tokens, experts', async () => {
    const golden = readGolden(directory)
    const model = await runModel(await pack(directory, 'f32'), one)
    try {
      await compareModel(golden, model)
    } finally {
      await model.close()
    }
  })

  test.runIf(device.runs)('has a numerics class of its own', () => {
    expect(device).toMatchObject({ numerics: expect.stringMatching(new RegExp(`^${provider}-`)) })
  })

  test.each(weightFormats)('runs %s or refuses it by name, and nothing else takes its place', (format) => {
    const seen = probe(provider, format)
    if (seen.runs) expect(seen.numerics).toMatch(new RegExp(`^${provider}-`))
    else expect(seen).toMatchObject({ code: 'PROVIDER_UNAVAILABLE', why: expect.stringContaining(`"${provider}"`) })
  })

  describe.runIf(device.runs).each(['f32', 'int4'] as const)('%s', (format) => {
    test('a row has the same bits among any others, of this model’s width and a real one’s', async () => {
      const { spec } = (await pack(directory, format)).manifest
      proveRowInvariance({ stageDir, provider, avoidSaturation: false, format }, spec)
      const layers = spec.layers.map((layer) =>
        layer.ffn.kind === 'moe' ? { ...layer, ffn: { ...layer.ffn, inner: 1024 } } : layer,
      )
      proveRowInvariance({ stageDir, provider, avoidSaturation: false, format }, { ...spec, hidden: 2048, layers })
    })

    test('the same bits: alone, together, in one chunk or many, on one node or two', async () => {
      const requests = readGolden(directory).prompts.map(({ ids }) => ({
        promptIds: ids,
        sampling: { maxTokens: 12 },
        output: { logprobs: 5, promptLogprobs: 5 },
      }))
      const run = async (topology: Topology, together: boolean) => {
        const model = await runModel(await pack(directory, format), topology)
        try {
          const results = []
          if (together) results.push(...(await Promise.all(requests.map((request) => model.generate(request)))))
          else for (const request of requests) results.push(await model.generate(request))
          return results.map(({ prompt, tokens }) => ({ prompt, tokens }))
        } finally {
          await model.close()
        }
      }
      const alone = await run(one, false)
      expect(await run(one, true)).toEqual(alone)
      expect(await run({ ...one, maxBatchTokens: 3 }, true)).toEqual(alone)
      // Nodes of a test are in one process, and a process has one rank on WebGPU.
      if (provider === 'cuda') expect(await run({ ...one, nodes: 2, replicas: 2 }, true)).toEqual(alone)
    })
  })
})
