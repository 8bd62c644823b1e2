import { Client, credentials, type StatusObject } from '@grpc/grpc-js'
import fc from 'fast-check'
import { afterEach, describe, expect, test } from 'vitest'
import { protocolVersion } from '../../services/config/version.ts'
import { Cancellation } from '../../services/dispatch/cancellation.ts'
import { decodeReply, encodeRequest, RowSelection } from '../../services/dispatch/frame.ts'
import {
  type ConnectionState,
  dispatchPath,
  type ExpertConnectionOptions,
} from '../../services/dispatch/grpc-transport.ts'
import { encodeHello } from '../../services/dispatch/hello.ts'
import { createOutputBuffer, createRowBuffer, rowEncoding } from '../../services/dispatch/rows.ts'
import { FakeHost } from './fake-host.ts'
import { dial, modelDigest, startNode } from './grpc-node.ts'
import { startProxy } from './proxy.ts'
import { expectedOutputs, makeCall, model, modelHidden, until } from './transport-contract.ts'

const closers: (() => Promise<void> | void)[] = []
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close()
})

async function node(port = 0) {
  const host = new FakeHost(rowEncoding('f32'), modelHidden)
  await host.load(Array.from({ length: 8 }, (_, expert) => ({ layer: 0, expert })))
  const started = await startNode(host, 'f32', {}, port)
  closers.push(() => {
    host.release()
    started.kill()
  })
  return { host, ...started }
}

function connected(address: string, options: Partial<ExpertConnectionOptions> = {}) {
  const states: ConnectionState[] = []
  const transport = dial(address, 'f32', { onState: (state) => states.push(state), ...options })
  closers.push(() => transport.close())
  return { transport, states }
}

async function works(transport: ReturnType<typeof dial>): Promise<void> {
  const call = makeCall('f32', 0, { 1: [0, 1], 6: [1] })
  await transport.call(call)
  expect(call.outputs.data).toEqual(expectedOutputs('f32', call))
}

test.each([
  { options: { modelDigest: 'e'.repeat(64) }, message: 'the model digest' },
  { options: { numerics: 'n2' }, message: 'the numerics class' },
  { options: { spec: { ...model, hidden: 8 } }, message: 'the hidden size 8' },
  { options: { nodeId: 'other' }, message: 'is node, not other' },
])('a connection that does not agree on $message is refused by name', async ({ options, message }) => {
  const { address } = await node()
  const { transport } = connected(address, options)
  await expect(transport.ready()).rejects.toThrow(message)
  await expect(transport.call(makeCall('f32', 0, { 1: [0] }))).rejects.toMatchObject({ code: 'NODE_LOST' })
})

test('a node of another weight format is refused by name', async () => {
  const { address } = await node()
  const transport = dial(address, 'int8')
  closers.push(() => transport.close())
  await expect(transport.ready()).rejects.toMatchObject({ code: 'NODE_INCOMPATIBLE' })
})

test('calls fail at once while a node is away, and succeed after it is back at its address', async () => {
  const first = await node()
  const { transport, states } = connected(first.address)
  await works(transport)
  first.host.isHolding = true
  const inFlight = transport.call(makeCall('f32', 0, { 1: [0] }))
  inFlight.catch(() => {})
  await until(() => first.host.waiting === 1)
  first.kill()
  await expect(inFlight).rejects.toMatchObject({ code: 'NODE_LOST' })
  await expect(transport.call(makeCall('f32', 0, { 1: [0] }))).rejects.toMatchObject({ code: 'NODE_LOST' })
  const second = await node(first.port)
  await until(() => transport.state().kind === 'ready')
  await works(transport)
  expect(second.host.computed).toBe(1)
  expect(states.map(({ kind }) => kind)).toContain('lost')
})

test('a node that nobody listens for is lost at once', async () => {
  const { address, kill } = await node()
  kill()
  const { transport } = connected(address)
  await expect(transport.call(makeCall('f32', 0, { 1: [0] }))).rejects.toMatchObject({ code: 'NODE_LOST' })
})

test('a half-open connection is noticed on both sides', async () => {
  const { address, host, service } = await node()
  const proxy = await startProxy(address, 0)
  closers.push(() => proxy.close())
  const { transport } = connected(proxy.address)
  await works(transport)
  host.isHolding = true
  const inFlight = transport.call(makeCall('f32', 0, { 1: [0] }))
  inFlight.catch(() => {})
  await until(() => host.waiting === 1)
  proxy.hold('both')
  await expect(inFlight).rejects.toMatchObject({ code: 'NODE_LOST' })
  await until(() => service.stats().streams === 0)
})

test.each(['up', 'down'] as const)('a megabyte passes %s although nothing comes back meanwhile', async (direction) => {
  const big = { ...model, hidden: 1 << 12 }
  const host = new FakeHost('f32', big.hidden)
  await host.load([{ layer: 0, expert: 0 }])
  const started = await startNode(host, 'f32', { spec: big })
  const proxy = await startProxy(started.address, 0)
  const { transport } = connected(proxy.address, { spec: big })
  closers.push(
    () => {
      host.release()
      started.kill()
    },
    () => proxy.close(),
  )
  const call = () => ({
    layer: 0,
    experts: Int32Array.of(0),
    counts: Int32Array.of(64),
    rowIndices: Int32Array.from({ length: 64 }, (_, row) => row),
    rows: createRowBuffer('f32', big.hidden, 64),
    outputs: createOutputBuffer(big.hidden, 64),
    outputStart: 0,
  })
  // The windows of a connection are announced with its first stream.
  await transport.call(call())
  host.isHolding = true
  const done = transport.call(call())
  done.catch(() => {})
  if (direction === 'up') {
    // No window update reaches the sender: all must fit the window that it was given.
    proxy.hold('down')
    await until(() => host.waiting === 1)
  } else {
    await until(() => host.waiting === 1)
    proxy.hold('up')
    host.release()
    expect(await done).toEqual({ computeMs: 1.5 })
  }
})

test('bytes in flight are bounded; what waits comes in its turn or is given up', async () => {
  const { address, host } = await node()
  const { transport } = connected(address, { bytesInFlightMax: 2 * modelHidden * 8 })
  await transport.ready()
  host.isHolding = true
  const cancellation = new Cancellation()
  const calls = Array.from({ length: 5 }, (_, salt) => makeCall('f32', 0, { 1: [0] }, salt))
  const done = calls.map((call, i) => transport.call(call, i === 3 ? cancellation : undefined))
  await until(() => host.waiting === 2)
  cancellation.cancel()
  await expect(done[3]).rejects.toMatchObject({ code: 'CANCELLED' })
  expect(host.calls).toBe(2)
  for (let i = 0; i < 4; i++) {
    await until(() => host.waiting > 0)
    host.release('first')
  }
  for (const i of [0, 1, 2, 4]) {
    await done[i]
    const call = calls[i]
    if (call) expect(call.outputs.data).toEqual(expectedOutputs('f32', call))
  }
  expect(host.calls).toBe(4)
})

test('more calls than may wait are refused as late', async () => {
  const { address, host } = await node()
  const { transport } = connected(address, { bytesInFlightMax: 1 })
  await transport.ready()
  host.isHolding = true
  const done = Array.from({ length: 258 }, () => transport.call(makeCall('f32', 0, { 1: [0] })))
  await expect(done.at(-1)).rejects.toMatchObject({ code: 'NODE_LATE' })
  await transport.close()
  await Promise.allSettled(done)
})

test('several coordinators share a node', async () => {
  const { address, service } = await node()
  const all = ['c1', 'c2', 'c3'].map((coordinatorId) => connected(address, { coordinatorId }).transport)
  await Promise.all(all.flatMap((transport) => Array.from({ length: 20 }, () => works(transport))))
  expect(service.stats()).toMatchObject({ streams: 3, calls: 60, rows: 180, waiting: 0 })
})

test('a node that shuts down answers what it has accepted, then ends the streams', async () => {
  const { address, host, service } = await node()
  const { transport } = connected(address)
  await transport.ready()
  host.isHolding = true
  const call = makeCall('f32', 0, { 1: [0] })
  const done = transport.call(call)
  await until(() => host.waiting === 1)
  const closed = service.close()
  await expect(transport.call(makeCall('f32', 0, { 1: [0] }))).rejects.toMatchObject({ code: 'NODE_LOST' })
  host.release()
  await done
  expect(call.outputs.data).toEqual(expectedOutputs('f32', call))
  await closed
  await until(() => transport.state().kind === 'lost')
})

describe('a peer that breaks the rules', () => {
  const raw = async (messages: Buffer[], address: string) => {
    const client = new Client(address, credentials.createInsecure())
    const same = (bytes: Buffer) => bytes
    const stream = client.makeBidiStreamRequest(dispatchPath, same, same)
    const replies: Buffer[] = []
    const ended = new Promise<StatusObject>((resolve) => stream.on('status', resolve))
    stream.on('data', (message: Buffer) => replies.push(message))
    stream.on('error', () => {})
    for (const message of messages) stream.write(message)
    closers.push(() => {
      stream.cancel()
      client.close()
    })
    return { stream, replies, ended }
  }
  const hello = encodeHello({
    protocol: protocolVersion,
    sender: 'raw',
    modelDigest,
    weightFormat: 'f32',
    hidden: modelHidden,
    numerics: 'n1',
    pairsMax: 100,
  })
  const frame = (sequence: number) =>
    encodeRequest(sequence, makeCall('f32', 0, { 1: [0] }), 'f32', modelHidden, new RowSelection())

  test('by not greeting is sent away', async () => {
    const { address } = await node()
    const { ended } = await raw([frame(1)], address)
    expect(await ended).toMatchObject({ code: 3, details: 'the first message must be a hello' })
  })

  test('with an invalid frame gets an error for it, and its other calls go on', async () => {
    const { address } = await node()
    const wrong = frame(4)
    const call = makeCall('f32', 1, { 7: [0] })
    const { replies } = await raw(
      [hello, encodeRequest(3, { ...call, layer: 5 }, 'f32', modelHidden, new RowSelection()), wrong],
      address,
    )
    await until(() => replies.length === 3)
    const decoded = replies.slice(1).map((reply) => decodeReply(reply))
    expect(decoded).toContainEqual({
      frame: {
        kind: 'error',
        sequence: 3,
        code: 'INVALID_ARGUMENT',
        message: 'dispatch frame: layer 5 has no experts',
      },
    })
    expect(decoded.some((reply) => 'frame' in reply && reply.frame.kind === 'done')).toBe(true)
  })

  test('by not reading for a while gets the replies that waited as they were computed', async () => {
    const { address, service } = await node()
    const { stream, replies } = await raw([hello], address)
    await until(() => replies.length === 1)
    stream.pause()
    const rows = Array.from({ length: 1000 }, (_, row) => row)
    const calls = Array.from({ length: 40 }, (_, salt) => makeCall('f32', 0, { 1: rows }, salt))
    calls.forEach((call, index) => {
      stream.write(encodeRequest(index + 1, call, 'f32', modelHidden, new RowSelection()))
    })
    await until(() => service.stats().calls === calls.length)
    stream.resume()
    await until(() => replies.length === 1 + calls.length)
    const answered = new Set<number>()
    for (const reply of replies.slice(1)) {
      const decoded = decodeReply(reply)
      if (!('frame' in decoded) || decoded.frame.kind !== 'done') throw new Error('not done')
      const { sequence, payload } = decoded.frame
      const call = calls[sequence - 1]
      if (!call) throw new Error(`${sequence} was not asked`)
      const start = call.outputStart * modelHidden * 4
      const expected = Buffer.from(expectedOutputs('f32', call).buffer, start, rows.length * modelHidden * 4)
      expect(Buffer.compare(payload, expected)).toBe(0)
      answered.add(sequence)
    }
    expect(answered.size).toBe(calls.length)
  })

  test('with random bytes is sent away, and the node goes on', async () => {
    const { address, problems } = await node()
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 60 }), async (bytes) => {
        await raw([hello, Buffer.from(bytes), Buffer.from([0xff])], address).then(({ ended }) => ended)
      }),
      { seed: 16, numRuns: 30 },
    )
    expect(problems.every(({ code }) => code === 'INVALID_ARGUMENT')).toBe(true)
    await works(connected(address).transport)
  })

  test('is told who may dispatch', async () => {
    const host = new FakeHost('f32', modelHidden)
    const started = await startNode(host, 'f32', {
      authorize: () => {
        throw new Error('not you')
      },
    })
    closers.push(() => started.kill())
    await expect(connected(started.address).transport.ready()).rejects.toThrow('not you')
  })
})
