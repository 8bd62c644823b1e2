import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { Cancellation } from '../../services/dispatch/cancellation.ts'
import { createOutputBuffer, createRowBuffer, hasScale, rowBytes, rowEncoding } from '../../services/dispatch/rows.ts'
import type { ExpertCall, ExpertTransport } from '../../services/dispatch/transport.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import type { ModelSpec } from '../../services/model/spec.ts'
import { checksum, FakeHost, fakeOutput } from './fake-host.ts'

export const modelHidden = 6
export const modelLayers = 2
export const modelExperts = 8

/** As much of a model as a transport looks at. */
export const model: ModelSpec = {
  family: 'test',
  hidden: modelHidden,
  vocabulary: 10,
  contextLength: 10,
  normEps: 1e-6,
  tiedEmbeddings: false,
  layers: Array.from({ length: modelLayers }, () => ({
    attention: {
      heads: 1,
      kvHeads: 1,
      headDim: 6,
      scale: 1,
      rope: { inverseFrequencies: [1, 1, 1], attentionFactor: 1 },
      window: null,
      qkNorm: 'none',
      clip: null,
      qkvBias: false,
      outputBias: false,
    },
    ffn: {
      kind: 'moe',
      inner: 4,
      activation: 'silu',
      experts: modelExperts,
      expertsPerToken: 2,
      router: { score: 'softmax', normalise: true },
    },
  })),
  bosTokenId: null,
  eosTokenIds: [],
}

export type Connection = { transport: ExpertTransport; close(): Promise<void> }

const guard = -99

/** A call for the given rows of each expert; room for two more output rows on both sides. */
export function makeCall(format: WeightFormat, layer: number, wanted: Record<number, number[]>, salt = 0): ExpertCall {
  const encoding = rowEncoding(format)
  const experts = Object.keys(wanted).map(Number)
  const rowIndices = Int32Array.from(experts.flatMap((expert) => wanted[expert] ?? []))
  const rowCount = rowIndices.reduce((max, row) => Math.max(max, row + 1), 0)
  const rows = createRowBuffer(encoding, modelHidden, rowCount)
  for (let i = 0; i < rows.data.length; i++) rows.data[i] = (i * 7 + salt * 13 + 1) % 251
  if (hasScale(encoding)) for (let row = 0; row < rowCount; row++) rows.scales[row] = row + 0.5
  const outputs = createOutputBuffer(modelHidden, rowIndices.length + 4)
  outputs.data.fill(guard)
  return {
    layer,
    experts: Int32Array.from(experts),
    counts: Int32Array.from(experts.map((expert) => wanted[expert]?.length ?? 0)),
    rowIndices,
    rows,
    outputs,
    outputStart: 2,
  }
}

/** The outputs that the call must have got, guards included. */
export function expectedOutputs(format: WeightFormat, call: ExpertCall): Float32Array {
  const bytes = rowBytes(rowEncoding(format), modelHidden)
  const expected = new Float32Array(call.outputs.data.length).fill(guard)
  let at = 0
  call.experts.forEach((expert, index) => {
    for (let i = 0; i < (call.counts[index] ?? 0); i++) {
      const row = call.rowIndices[at] ?? 0
      const sum = checksum(call.rows.data.subarray(row * bytes, (row + 1) * bytes))
      for (let column = 0; column < modelHidden; column++) {
        expected[(call.outputStart + at) * modelHidden + column] = fakeOutput(
          call.layer,
          expert,
          sum,
          call.rows.scales[row] ?? 0,
          column,
        )
      }
      at += 1
    }
  })
  return expected
}

const isUntouched = (call: ExpertCall) => call.outputs.data.every((value) => value === guard)

/** The promises of every way to an expert node. */
export function transportContract(
  name: string,
  format: WeightFormat,
  connect: (host: FakeHost, format: WeightFormat) => Promise<Connection>,
): void {
  describe(`${name}, ${format}`, () => {
    let host: FakeHost
    let connection: Connection
    let transport: ExpertTransport

    beforeEach(async () => {
      host = new FakeHost(rowEncoding(format), modelHidden)
      await host.load([0, 1, 2, 3, 5].flatMap((expert) => [0, 1].map((layer) => ({ layer, expert }))))
      connection = await connect(host, format)
      transport = connection.transport
    })
    afterEach(async () => {
      host.release()
      await connection.close()
    })

    test('outputs come in the order of the rows, and nothing else is written', async () => {
      const call = makeCall(format, 1, { 0: [2, 0], 3: [0, 1, 2], 5: [4] })
      expect(await transport.call(call)).toEqual({ computeMs: 1.5 })
      expect(call.outputs.data).toEqual(expectedOutputs(format, call))
    })

    test('a node that does not hold an expert computes nothing', async () => {
      const call = makeCall(format, 0, { 1: [0], 4: [0, 1] })
      await expect(transport.call(call)).rejects.toMatchObject({ code: 'EXPERT_NOT_HELD' })
      expect(host.computed).toBe(0)
      expect(isUntouched(call)).toBe(true)
      const held = makeCall(format, 0, { 1: [0] })
      await transport.call(held)
      expect(held.outputs.data).toEqual(expectedOutputs(format, held))
    })

    test('calls in flight do not disturb each other, whatever the order of the answers', async () => {
      host.isHolding = true
      const calls = [0, 1, 2].map((salt) => makeCall(format, salt % 2, { [salt]: [1, 0], 5: [3] }, salt))
      const done = calls.map((call) => transport.call(call))
      await until(() => host.waiting === 3)
      host.release('last')
      await done[2]
      expect(isUntouched(calls[0] ?? assertNever())).toBe(true)
      host.release()
      await Promise.all(done)
      for (const call of calls) expect(call.outputs.data).toEqual(expectedOutputs(format, call))
    })

    test('a call that was given up settles, and nothing is written after that', async () => {
      host.isHolding = true
      const cancellation = new Cancellation()
      const call = makeCall(format, 0, { 2: [0, 1] })
      const done = transport.call(call, cancellation)
      await until(() => host.waiting === 1)
      cancellation.cancel()
      // Ranks that share memory finish first; over a network the answer comes when nobody waits for it.
      if (name === 'local') host.release()
      await expect(done).rejects.toMatchObject({ code: 'CANCELLED' })
      call.outputs.data.fill(guard)
      host.release()
      host.isHolding = false
      const next = makeCall(format, 0, { 2: [0, 1] }, 7)
      await transport.call(next)
      expect(next.outputs.data).toEqual(expectedOutputs(format, next))
      expect(isUntouched(call)).toBe(true)
    })

    test('a call that is cancelled already reaches nobody', async () => {
      const call = makeCall(format, 0, { 2: [0] })
      const cancelled = new Cancellation()
      cancelled.cancel()
      await expect(transport.call(call, cancelled)).rejects.toMatchObject({ code: 'CANCELLED' })
      expect(host.calls).toBe(0)
    })

    test('closing fails what is in flight and what comes later', async () => {
      host.isHolding = true
      const done = transport.call(makeCall(format, 0, { 2: [0] }))
      done.catch(() => {})
      await until(() => host.waiting === 1)
      await transport.close()
      host.release()
      await expect(done).rejects.toMatchObject({ code: 'NODE_LOST' })
      await expect(transport.call(makeCall(format, 0, { 2: [0] }))).rejects.toMatchObject({ code: 'NODE_LOST' })
    })

    test("a host's failure is told, and the next call goes on", async () => {
      host.failure = new MoeshError('INTERNAL', 'the rank failed')
      await expect(transport.call(makeCall(format, 0, { 2: [0] }))).rejects.toMatchObject({ code: 'INTERNAL' })
      host.failure = null
      const call = makeCall(format, 0, { 2: [0] })
      await transport.call(call)
      expect(call.outputs.data).toEqual(expectedOutputs(format, call))
    })

    test('a call larger than a frame arrives whole', async () => {
      const many = Array.from({ length: 40_000 }, (_, i) => i % 512)
      const call = makeCall(format, 1, { 0: many, 1: many, 3: [5] })
      await transport.call(call)
      expect(Buffer.compare(bytesOf(call.outputs.data), bytesOf(expectedOutputs(format, call)))).toBe(0)
    })
  })
}

function bytesOf(values: Float32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength)
}

function assertNever(): never {
  throw new Error('unreachable')
}

/** Waits for something that only other processes' or sockets' progress can bring. */
export async function until(isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await new Promise(setImmediate)
}
