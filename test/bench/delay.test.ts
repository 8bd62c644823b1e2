import { connect, createServer } from 'node:net'
import { expect, test } from 'vitest'
import { DelayLine } from '../../bench/delay-line.ts'
import { startDelayProxy } from '../../bench/delay-proxy.ts'
import { streamFor } from '../../bench/random.ts'

test('what goes into a line comes out after the delay, in order', () => {
  const line = new DelayLine<string>(() => 10, 0, streamFor(1, 'test'))
  line.push('a', 100)
  line.push('b', 104)
  expect(line.nextDueMs()).toBe(110)
  expect(line.takeDue(109.9)).toEqual([])
  expect(line.takeDue(110)).toEqual(['a'])
  expect(line.takeDue(200)).toEqual(['b'])
  expect(line.nextDueMs()).toBeNull()
})

test('jitter never lets bytes overtake each other, and is the same for a seed', () => {
  const dueTimes = (seed: number) => {
    const line = new DelayLine<number>(() => 5, 8, streamFor(seed, 'test'))
    const times: number[] = []
    for (let item = 0; item < 200; item++) line.push(item, item)
    const order: number[] = []
    while (line.length > 0) {
      const dueMs = line.nextDueMs() ?? 0
      const taken = line.takeDue(dueMs)
      order.push(...taken)
      times.push(...taken.map(() => dueMs))
    }
    expect(order).toEqual(Array.from({ length: 200 }, (_, item) => item))
    for (const [item, dueMs] of times.entries()) {
      expect(dueMs).toBeGreaterThanOrEqual(item + 5)
      expect(dueMs).toBeLessThanOrEqual(item + 13)
    }
    return times
  }
  expect(dueTimes(1)).toEqual(dueTimes(1))
  expect(dueTimes(1)).not.toEqual(dueTimes(2))
})

test('a change of the delay holds for what is sent from then on', () => {
  let delayMs = 10
  const line = new DelayLine<string>(() => delayMs, 0, streamFor(1, 'test'))
  line.push('slow', 0)
  delayMs = 0
  line.push('fast', 1)
  expect(line.takeDue(9)).toEqual([])
  expect(line.takeDue(10)).toEqual(['slow', 'fast'])
})

test('a proxy carries all bytes both ways, with and without delay, and the end of the stream', async () => {
  const server = createServer({ allowHalfOpen: true }, (socket) => void socket.pipe(socket))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  const proxy = await startDelayProxy({ roundTripMs: 0, jitterMs: 0 })
  proxy.setTarget(`127.0.0.1:${address.port}`)
  const payload = Buffer.from(Uint8Array.from({ length: 500_000 }, (_, index) => (index * 31) & 255))
  try {
    for (const roundTripMs of [0, 3]) {
      proxy.setRoundTripMs(roundTripMs)
      const socket = connect({ host: '127.0.0.1', port: Number(proxy.address.split(':')[1]), allowHalfOpen: true })
      socket.end(payload)
      const chunks: Buffer[] = []
      for await (const chunk of socket) chunks.push(chunk)
      expect(Buffer.concat(chunks).equals(payload)).toBe(true)
    }
  } finally {
    await proxy.close()
    await new Promise((resolve) => server.close(resolve))
  }
})
