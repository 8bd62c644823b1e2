import { MoeshError } from '../../services/config/errors.ts'
import type { ServedModel, TextModel } from '../../services/coordinator/api/models.ts'
import type { ClusterView } from '../../services/coordinator/cluster-view.ts'
import type { Engine, EngineRequest, EngineSink, TokenOutput } from '../../services/coordinator/request.ts'
import type { Manifest } from '../../services/pack/manifest.ts'

/** Every byte is a token; 256 ends a text. */
export const endOfText = 256
export const vocabulary = 257

/** A tokenizer of bytes, so that tests can cut characters wherever they like. */
export const byteText: TextModel = {
  encode: (text) => [...Buffer.from(text)],
  encodeWithOffsets: (text) => {
    const ids = [...Buffer.from(text)]
    return { ids, byteOffsets: ids.map((_, index) => index) }
  },
  decode: (ids, { skipSpecial }) => {
    const text = Buffer.from(ids.filter((id) => id < endOfText)).toString()
    return text + (ids.includes(endOfText) && !skipSpecial ? '<end>' : '')
  },
  renderChat: (messages, tools = null, variables = {}, continueFinal = false) => {
    const turns = messages.map(({ role, content }) => `<${role}>${content}`).join('')
    const extras = JSON.stringify({ tools, variables })
    return continueFinal ? turns : `${turns}${extras}<assistant>`
  },
  createTextStream: ({ skipSpecial }) => {
    const decoder = new TextDecoder()
    return {
      push: (id) => {
        if (id === endOfText) return decoder.decode() + (skipSpecial ? '' : '<end>')
        return decoder.decode(Uint8Array.of(id), { stream: true })
      },
      flush: () => decoder.decode(),
    }
  },
}

export type FakeEngine = Engine & {
  readonly requests: EngineRequest[]
  readonly cancelled: string[]
  /** No token comes until `release`. */
  hold(): void
  release(): void
}

/** Says the bytes of `script(request, candidate)`, one token of each candidate a turn, then ends the text. */
export function fakeEngine(
  script: (request: EngineRequest, candidate: number) => Buffer,
  limits: Partial<Engine['limits']> = {},
): FakeEngine {
  const requests: EngineRequest[] = []
  const cancelled: string[] = []
  let running = 0
  let gate: PromiseWithResolvers<void> | null = null
  const allLimits = { contextLength: 512, maxSequences: 8, maxBatchTokens: 64, queueMax: 4, ...limits }

  async function run(request: EngineRequest, sink: EngineSink, active: Set<number>): Promise<void> {
    const { sampling, output, candidates } = request
    const scripts = Array.from({ length: candidates }, (_, candidate) => [...script(request, candidate), endOfText])
    const positions = scripts.map((_, candidate) => request.resumeFrom?.[candidate]?.length ?? 0)
    await turn()
    const scored = output.promptLogprobs !== null || output.promptExpertTrace
    sink.prompt(scored ? request.promptIds.map((id, index) => token(id, index, output.promptLogprobs)) : null, 3)
    if (sampling.maxTokens === 0) for (const candidate of active) sink.finish(candidate, { kind: 'length' })
    while (sampling.maxTokens > 0 && active.size > 0) {
      await turn()
      for (const candidate of [...active]) {
        const position = positions[candidate] ?? 0
        const id = scripts[candidate]?.[position] ?? endOfText
        sink.token(candidate, position, token(id, position, output.logprobs))
        positions[candidate] = position + 1
        if (!active.has(candidate)) continue
        if (sampling.stopTokenIds.has(id) && position + 1 > sampling.minTokens) {
          sink.finish(candidate, { kind: 'stop', tokenId: id })
          active.delete(candidate)
        } else if (position + 1 >= sampling.maxTokens) {
          sink.finish(candidate, { kind: 'length' })
          active.delete(candidate)
        }
      }
    }
    running--
    sink.done({
      promptTokens: request.promptIds.length,
      cachedTokens: 3,
      outputTokens: positions.reduce((sum, count) => sum + count, 0),
      queueMs: 1,
      timeToFirstTokenMs: 2,
      totalMs: 5,
      retriedDispatches: 4,
    })
  }

  async function turn(): Promise<void> {
    if (gate !== null) await gate.promise
    await new Promise((resolve) => setImmediate(resolve))
  }

  return {
    limits: allLimits,
    requests,
    cancelled,
    hold: () => {
      gate ??= Promise.withResolvers()
    },
    release: () => {
      gate?.resolve()
      gate = null
    },
    beginEra: () => {},
    submit: (request, sink) => {
      if (running >= allLimits.queueMax) throw new MoeshError('QUEUE_FULL', `${running} requests are waiting`)
      running++
      requests.push(request)
      const active = new Set(Array.from({ length: request.candidates }, (_, candidate) => candidate))
      void run(request, sink, active)
      return {
        stop: (candidate) => active.delete(candidate),
        cancel: () => {
          cancelled.push(request.id)
          for (const candidate of active) sink.finish(candidate, { kind: 'cancelled' })
          active.clear()
          gate?.resolve()
          gate = null
        },
      }
    },
    stats: () => ({ running, queued: 0, tokensPerSecond: 0, kvTokensUsed: 0, kvTokensKept: 0, kvTokensMax: 0 }),
    close: async () => {},
  }
}

/** Made up, but all different, so that a mix-up shows. */
function token(id: number, position: number, wanted: number | null): TokenOutput {
  if (wanted === null) return { id, logprobs: null, experts: null }
  const logprob = (other: number) => Math.fround(-0.25 - other / 7 - position / 1000)
  return {
    id,
    logprobs: {
      chosen: logprob(id),
      rank: 1 + (id % 5),
      top: Array.from({ length: Math.max(0, wanted) }, (_, other) => ({ id: other, logprob: logprob(other) })),
      all: wanted === -1 ? Float32Array.from({ length: vocabulary }, (_, other) => logprob(other)) : null,
    },
    experts: [{ layer: 1, expertIds: [2, 5], weights: [0.75, 0.25] }],
  }
}

export function fakeManifest(change: Partial<Manifest> = {}): Manifest {
  const attention: Manifest['spec']['layers'][number]['attention'] = {
    heads: 1,
    kvHeads: 1,
    headDim: 4,
    scale: 0.5,
    rope: { inverseFrequencies: [1, 0.1], attentionFactor: 1 },
    window: null,
    qkNorm: 'none',
    clip: null,
    qkvBias: false,
    outputBias: false,
  }
  const router = { score: 'softmax', normalise: true } as const
  const moe = { kind: 'moe', inner: 4, activation: 'silu', experts: 8, expertsPerToken: 2, router } as const
  const dense = { kind: 'dense', inner: 4, activation: 'silu', bias: false } as const
  return {
    formatVersion: 1,
    tool: 'test',
    name: 'bytes',
    weightFormat: 'f32',
    spec: {
      family: 'test',
      hidden: 4,
      vocabulary,
      contextLength: 512,
      normEps: 1e-6,
      tiedEmbeddings: true,
      layers: [
        { attention, ffn: dense },
        { attention, ffn: moe },
      ],
      bosTokenId: null,
      eosTokenIds: [endOfText],
    },
    parameters: { total: 1000, active: 300 },
    license: 'Apache-2.0',
    source: 'made for tests',
    provenance: {},
    generation: { temperature: 0.7, topP: 0.9, topK: null, minP: null, repetitionPenalty: null },
    tokenizer: { tokenizerJson: 'tokenizer.json', tokenizerConfigJson: null },
    chatTemplate: 'a template',
    files: [],
    tensors: [],
    shards: [],
    ...change,
  }
}

export function fakeModel(engine: Engine, change: Partial<ServedModel> = {}): ServedModel {
  return {
    manifest: fakeManifest(),
    digest: 'd'.repeat(64),
    fingerprint: 'fingerprint-1',
    engine,
    text: byteText,
    ...change,
  }
}

export const noCluster: ClusterView = {
  getStatus: async () => {
    throw new MoeshError('STARTING', 'no cluster here')
  },
  watchEvents: () => () => {},
  drain: async (node) => {
    throw new MoeshError('NODE_UNKNOWN', `there is no node "${node}"`)
  },
  undrain: async () => {},
  rebalance: async () => ({ moves: [], balancednessBefore: 1, balancednessAfter: 1, bytes: 0, epoch: 0 }),
  cancelElsewhere: async () => false,
  getProfile: () => ({
    coordinator: 'c1',
    threads: 2,
    layers: 2,
    moeLayers: 1,
    steps: [],
    oneRowOverhead: [],
    ranks: null,
  }),
}
