import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { systemClock } from '../../services/dispatch/clock.ts'

test('wishes come true in their order, not before their time, and not when they were cancelled', async () => {
  const startMs = systemClock.nowMs()
  const came: [string, number][] = []
  const wish = (name: string, delayMs: number) => {
    const done = () => came.push([name, systemClock.nowMs() - startMs - delayMs])
    return systemClock.after(delayMs, done)
  }
  wish('third', 40)
  const cancelled = wish('cancelled', 5)
  wish('second', 20)
  const other = wish('cancelled by the first', 10.2)
  systemClock.after(10, () => {
    other.cancel()
    came.push(['first', 0])
    wish('nested', 70)
  })
  cancelled.cancel()
  await sleep(120)
  expect(came.map(([name]) => name)).toEqual(['first', 'second', 'third', 'nested'])
  for (const [, lateMs] of came) expect(lateMs).toBeGreaterThanOrEqual(0)
})

test('one that throws does not keep the others from coming', async () => {
  const thrown: unknown[] = []
  const listener = (error: unknown) => thrown.push(error)
  const before = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.on('uncaughtException', listener)
  try {
    const came: string[] = []
    systemClock.after(5, () => {
      throw new Error('on purpose')
    })
    systemClock.after(15, () => came.push('later'))
    await sleep(60)
    expect(came).toEqual(['later'])
    expect(thrown).toHaveLength(1)
  } finally {
    process.off('uncaughtException', listener)
    for (const one of before) process.on('uncaughtException', one)
  }
})
