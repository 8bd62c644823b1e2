import { expect, test } from 'vitest'
import { LateLog } from '../../services/coordinator/late-log.ts'
import { FakeClock } from '../dispatch/fake-clock.ts'

test('people hear of nodes that stay late, not of moments', async () => {
  const clock = new FakeClock()
  const told: string[] = []
  const late = new LateLog(clock, {
    debug: () => {},
    warn: (fields: object, text?: string) => void told.push(`${JSON.stringify(fields)} ${text}`),
  })
  late.note('a', true, 'slow')
  await clock.advance(400)
  late.note('a', false, 'it answered')
  await clock.advance(1000)
  expect(told).toEqual([])
  late.note('a', true, 'slow')
  await clock.advance(600)
  late.note('a', false, 'it answered')
  expect(told).toEqual(['{"node":"a","reason":"slow"} late for 500 ms', '{"node":"a"} answers again'])
  late.note('b', true, 'slow')
  late.close()
  expect(clock.timers).toBe(0)
})
