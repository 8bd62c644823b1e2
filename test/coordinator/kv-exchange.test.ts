import { expect, test } from 'vitest'
import { KvBlocks } from '../../services/coordinator/kv-blocks.ts'
import { StepwiseExchange } from '../../services/coordinator/kv-exchange.ts'
import { kvBlockTokens } from '../../services/coordinator/team/kv-cache.ts'
import type { Team } from '../../services/coordinator/team/team.ts'

/** A team whose blocks hold one number; `move` runs before it is copied. */
function exchange(move: (kv: KvBlocks) => void = () => {}) {
  const kv = new KvBlocks(4 * kvBlockTokens, new Int32Array(8), 8, true)
  const held = new Map<number, number>()
  const kvBlock = new Float32Array(new SharedArrayBuffer(8))
  const team = {
    buffers: { kvBlock },
    moveBlock: async (block: number, direction: 'out' | 'in') => {
      move(kv)
      if (direction === 'in') held.set(block, kvBlock[1] ?? 0)
      else kvBlock[1] = held.get(block) ?? 0
    },
  } as unknown as Team
  let woken = 0
  const onWork = () => {
    woken += 1
  }
  const it = new StepwiseExchange(kv, team, () => performance.now(), onWork)
  return { it, kv, woken: () => woken }
}

const bytesOf = (value: number) => new Uint8Array(Float32Array.of(0, value).buffer)

test('blocks go in and out between steps', async () => {
  const { it, kv, woken } = exchange()
  const writes = [it.write('aa', bytesOf(5), 0), it.write('bb', bytesOf(6), 0), it.write('aa', bytesOf(5), 0)]
  expect(woken()).toBe(3)
  expect(it.held(['aa'])).toBe(0)
  await it.work()
  expect(it.hasWork).toBe(false)
  expect(await Promise.all(writes)).toEqual([true, true, true])
  expect(it.held(['aa', 'bb', 'cc'])).toBe(2)
  expect(kv.usedTokens).toBe(0)
  const reads = [it.read('bb'), it.read('cc')]
  await it.work()
  expect(await Promise.all(reads)).toEqual([bytesOf(6), null])
})

test('nothing of an era that has ended is found', async () => {
  const { it, kv } = exchange((blocks) => blocks.beginEra())
  const write = it.write('aa', bytesOf(5), 0)
  await it.work()
  expect(await write).toBe(false)
  const late = it.write('aa', bytesOf(5), 0)
  await it.work()
  expect(await late).toBe(false)
  expect(it.names()).toEqual([])
  expect(kv.free).toBe(4)
})

test('a block for which there is no memory is not used again, and no other is tried', async () => {
  let fails = false
  const { it, kv } = exchange(() => {
    if (fails) throw new Error('no memory')
  })
  const first = it.write('aa', bytesOf(5), 0)
  await it.work()
  expect(await first).toBe(true)
  fails = true
  const second = expect(it.write('bb', bytesOf(6), 0)).rejects.toThrow('no memory')
  await it.work()
  await second
  const third = it.write('cc', bytesOf(7), 0)
  await it.work()
  expect(await third).toBe(false)
  expect(it.names()).toEqual(['aa'])
  expect([kv.free, kv.usedTokens]).toEqual([3, 0])
})

test('what waits when it is closed is answered', async () => {
  const { it } = exchange()
  const waiting = [it.read('aa'), it.write('bb', bytesOf(6), 0)]
  await it.close()
  expect(await Promise.all(waiting)).toEqual([null, false])
  expect(await it.read('aa')).toBeNull()
})
