import { join } from 'node:path'
import { loadPackageDefinition } from '@grpc/grpc-js'
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { MoeshError } from '../../services/config/errors.ts'
import { protocolVersion } from '../../services/config/version.ts'
import {
  checkRequest,
  decodeReply,
  decodeRequest,
  encodeError,
  encodeReply,
  encodeRequest,
  type FrameShape,
  type RequestFrame,
  RowSelection,
} from '../../services/dispatch/frame.ts'
import { checkHello, encodeHello, type Hello } from '../../services/dispatch/hello.ts'
import { createOutputBuffer, type OutputBuffer, rowBytes, rowEncoding } from '../../services/dispatch/rows.ts'
import type { ExpertCall } from '../../services/dispatch/transport.ts'
import { type WeightFormat, weightFormats } from '../../services/model/format.ts'
import { makeCall, modelExperts, modelHidden } from './transport-contract.ts'

const shapeOf = (format: WeightFormat): FrameShape => ({
  hidden: modelHidden,
  encoding: rowEncoding(format),
  layers: new Map([
    [0, modelExperts],
    [1, modelExperts],
  ]),
})

const calls = fc
  .record({
    format: fc.constantFrom(...weightFormats),
    layer: fc.nat(1),
    wanted: fc.array(fc.tuple(fc.nat(modelExperts - 1), fc.array(fc.nat(40), { minLength: 1, maxLength: 12 })), {
      minLength: 1,
      maxLength: modelExperts,
    }),
    salt: fc.nat(99),
  })
  .map(({ format, layer, wanted, salt }) => ({
    format,
    call: makeCall(format, layer, Object.fromEntries(wanted), salt),
  }))

function encode(format: WeightFormat, call: ExpertCall, sequence = 7): Buffer {
  return encodeRequest(sequence, call, rowEncoding(format), modelHidden, new RowSelection())
}

function request(message: Uint8Array): RequestFrame {
  const decoded = decodeRequest(message)
  if ('hello' in decoded) throw new Error('a hello')
  return decoded.frame
}

test('a request brings every pair its row, and each row once', () => {
  const selection = new RowSelection()
  fc.assert(
    fc.property(calls, fc.integer({ min: 1, max: 0xffffffff }), ({ format, call }, sequence) => {
      const frame = request(encodeRequest(sequence, call, rowEncoding(format), modelHidden, selection))
      checkRequest(frame, shapeOf(format))
      expect(frame.sequence).toBe(sequence)
      expect(frame.layer).toBe(call.layer)
      expect(frame.experts).toEqual(call.experts)
      expect(frame.counts).toEqual(call.counts)
      expect(frame.rows).toBe(new Set(call.rowIndices).size)
      const bytes = rowBytes(rowEncoding(format), modelHidden)
      call.rowIndices.forEach((row, pair) => {
        const place = frame.rowIndices[pair] ?? -1
        const sent = frame.payload.subarray(place * bytes, (place + 1) * bytes)
        expect(Buffer.compare(sent, call.rows.data.subarray(row * bytes, (row + 1) * bytes))).toBe(0)
        expect(frame.scales[place]).toBe(call.rows.scales[row])
      })
    }),
    { seed: 11, numRuns: 200 },
  )
})

test('arrays lie at multiples of four where gRPC puts them, and payloads at multiples of eight', () => {
  fc.assert(
    fc.property(calls, ({ format, call }) => {
      // gRPC hands a message out five bytes into a fresh buffer.
      const received = new Uint8Array(5 + encode(format, call).length)
      received.set(encode(format, call), 5)
      const frame = request(received.subarray(5))
      for (const view of [frame.experts, frame.counts, frame.rowIndices, frame.payload]) {
        expect(view.buffer).toBe(received.buffer)
        expect(view.byteOffset % 4).toBe(0)
      }
      expect(frame.payload.byteOffset % 8).toBe(0)
    }),
    { seed: 12, numRuns: 50 },
  )
})

function outputsOf(values: ArrayLike<number>): OutputBuffer {
  const outputs = createOutputBuffer(1, values.length + 1)
  outputs.data.set(values)
  return outputs
}

test('a reply brings its outputs', () => {
  fc.assert(
    fc.property(fc.float32Array({ minLength: 1 }), fc.nat(), (outputs, sequence) => {
      const reply = encodeReply(sequence, outputsOf(outputs), outputs.length, 1.5, 0.25)
      const decoded = decodeReply(reply)
      expect(decoded).toMatchObject({ frame: { kind: 'done', sequence, computeMs: 1.5, waitMs: 0.25 } })
      if (!('frame' in decoded) || decoded.frame.kind !== 'done') throw new Error('not done')
      const { payload } = decoded.frame
      expect((5 + payload.byteOffset - reply.byteOffset) % 8).toBe(0)
      expect(Buffer.compare(payload, new Uint8Array(outputs.buffer, outputs.byteOffset, outputs.byteLength))).toBe(0)
    }),
    { seed: 13, numRuns: 100 },
  )
  expect(decodeReply(encodeError(3, 'EXPERT_NOT_HELD', 'not here'))).toEqual({
    frame: { kind: 'error', sequence: 3, code: 'EXPERT_NOT_HELD', message: 'not here' },
  })
})

const hello: Hello = {
  protocol: protocolVersion,
  sender: 'a',
  modelDigest: 'f'.repeat(64),
  weightFormat: 'int8',
  hidden: 64,
  numerics: 'n1',
  pairsMax: 128,
}

describe('greeting', () => {
  test('arrives whole, on both sides of the stream', () => {
    expect(decodeRequest(encodeHello(hello))).toEqual({ hello })
    expect(decodeReply(encodeHello(hello))).toEqual({ hello })
  })

  test.each([
    { peer: { protocol: 2 }, message: 'the protocol version 2' },
    { peer: { modelDigest: 'e' }, message: 'the model digest e' },
    { peer: { weightFormat: 'int4' }, message: 'the weight format int4' },
    { peer: { hidden: 8 }, message: 'the hidden size 8' },
    { peer: { numerics: '' }, message: 'the numerics class (none)' },
  ])('of a peer with $message is refused', ({ peer, message }) => {
    expect(() => checkHello(hello, { ...hello, sender: 'b', ...peer })).toThrow(`b has ${message}`)
  })
})

/** Decodes and checks; anything but a MoeshError fails the test. */
function survives(message: Uint8Array): void {
  for (const read of [
    () => {
      const decoded = decodeRequest(message)
      if ('frame' in decoded) for (const format of weightFormats) checkRequest(decoded.frame, shapeOf(format))
    },
    () => decodeReply(message),
  ]) {
    try {
      read()
    } catch (error) {
      expect(error).toBeInstanceOf(MoeshError)
      expect((error as MoeshError).code).toBe('INVALID_ARGUMENT')
    }
  }
}

test('random bytes are refused or read, never more', () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), survives), { seed: 14, numRuns: 3000 })
})

test('a frame with changed, missing or added bytes is refused or is another valid frame', () => {
  fc.assert(
    fc.property(
      calls,
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
      fc.nat(),
      fc.constantFrom('keep' as const, 'cut' as const, 'double' as const),
      ({ format, call }, changes, length, how) => {
        const message = Uint8Array.from(encode(format, call))
        for (const [at, value] of changes) message[at % message.length] = value
        if (how === 'keep') survives(message)
        else if (how === 'cut') survives(message.subarray(0, length % message.length))
        else survives(Buffer.concat([message, message.subarray(length % message.length)]))
      },
    ),
    { seed: 15, numRuns: 2000 },
  )
})

describe('a request is refused for', () => {
  const good = () => request(encode('int8', makeCall('int8', 0, { 1: [0, 1], 4: [1] })))
  test.each([
    { change: { layer: 9 }, message: 'layer 9 has no experts' },
    { change: { experts: Int32Array.of(4, 1) }, message: 'ids must ascend' },
    { change: { experts: Int32Array.of(1, 1) }, message: 'ids must ascend' },
    { change: { experts: Int32Array.of(-1, 1) }, message: 'ids must ascend' },
    { change: { experts: Int32Array.of(1, 8) }, message: 'expert 8 of 8' },
    { change: { experts: Int32Array.of(1) }, message: '1 experts with 2 counts' },
    { change: { counts: Int32Array.of(3, 0) }, message: 'expert 4 has 0 rows' },
    { change: { counts: Int32Array.of(4, -1) }, message: 'expert 4 has -1 rows' },
    { change: { counts: Int32Array.of(2, 2) }, message: 'counts add up to 4 pairs, there are 3' },
    { change: { rowIndices: Int32Array.of(0, 1, 2) }, message: 'row index 2 of 2 rows' },
    { change: { rowIndices: Int32Array.of(0, 1, -1) }, message: 'row index -1 of 2 rows' },
    { change: { rows: 3 }, message: 'a payload of 24 bytes, 3 rows have 36' },
    { change: { rows: 4 }, message: '4 rows for 3 pairs' },
    { change: { rows: 0 }, message: '0 rows for 3 pairs' },
    { change: { payload: new Uint8Array(23) }, message: 'a payload of 23 bytes, 2 rows have 24' },
    { change: { scales: new Float32Array(1) }, message: '1 scales for 2 scaled rows' },
    { change: { rowIndices: new Int32Array(65537) }, message: '65537 pairs, at most 65536' },
  ])('$message', ({ change, message }) => {
    expect(() => checkRequest({ ...good(), ...change }, shapeOf('int8'))).toThrow(message)
  })
})

describe('the codec is true to the .proto file', () => {
  const root = loadPackageDefinition(
    loadSync(join(import.meta.dirname, '../../proto/moesh/internal/v1/expert.proto'), {
      keepCase: true,
      defaults: true,
    }),
  ) as unknown as {
    moesh: { internal: { v1: { ExpertService: { service: Record<string, MessageCodec> } } } }
  }
  type MessageCodec = {
    path: string
    requestDeserialize: (bytes: Buffer) => Record<string, unknown>
    requestSerialize: (value: object) => Buffer
    responseDeserialize: (bytes: Buffer) => Record<string, unknown>
    responseSerialize: (value: object) => Buffer
  } & MessageTypeDefinition<object, object>
  const dispatch = root.moesh.internal.v1.ExpertService.service.Dispatch
  if (!dispatch) throw new Error('no Dispatch')

  test('what we write, others read', () => {
    const call = makeCall('int8-fast', 1, { 2: [3, 0], 5: [3] })
    const read = dispatch.requestDeserialize(encode('int8-fast', call, 99))
    expect(read).toMatchObject({
      sequence: 99,
      layer: 1,
      rows: 2,
      experts: [2, 5],
      counts: [2, 1],
      row_indices: [0, 1, 0],
      scales: [3.5, 0.5],
    })
    const payload = read.payload as Uint8Array
    expect([...payload.subarray(0, modelHidden)]).toEqual([
      ...call.rows.data.subarray(3 * modelHidden, 4 * modelHidden),
    ])
    const reply = dispatch.responseDeserialize(encodeReply(5, outputsOf([1, 2]), 2, 2.5, 0.5))
    expect(reply).toMatchObject({ sequence: 5, compute_ms: 2.5, wait_ms: 0.5, code: '' })
    expect(dispatch.responseDeserialize(encodeError(5, 'INTERNAL', 'why'))).toMatchObject({
      code: 'INTERNAL',
      message: 'why',
    })
    expect(dispatch.requestDeserialize(encodeHello(hello)).hello).toMatchObject({
      sender: 'a',
      hidden: 64,
      pairs_max: 128,
    })
  })

  test('what others write, we read', () => {
    const bytes = dispatch.requestSerialize({
      payload: Buffer.alloc(modelHidden, 3),
      rows: 1,
      layer: 1,
      sequence: 8,
      experts: [2, 3],
      counts: [1, 1],
      row_indices: [0, 0],
      scales: [0.5],
    })
    const frame = request(bytes)
    checkRequest(frame, shapeOf('int8-fast'))
    expect(frame).toMatchObject({ sequence: 8, layer: 1, rows: 1 })
    expect([...frame.experts]).toEqual([2, 3])
    expect(dispatch.path).toBe('/moesh.internal.v1.ExpertService/Dispatch')
  })
})
