import { expect, test } from 'vitest'
import { JournalWriter } from '../../services/coordinator/api/journal-writer.ts'
import { createMemoryJournal, type Journal } from '../../services/coordinator/journal.ts'

test('a request that begins while the store is away is in the journal once it is back', async () => {
  const kept = createMemoryJournal({ keepMs: 60_000, requestsMax: 10, nowMs: () => 0 })
  let isAway = true
  const journal: Journal = {
    ...kept,
    put: (id, request) => (isAway ? Promise.reject(new Error('away')) : kept.put(id, request)),
  }
  const errors: string[] = []
  const writer = new JournalWriter({
    journal,
    id: 'a',
    known: [0],
    open: () => journal.put('a', '{}'),
    onError: ({ message }) => errors.push(message),
  })
  // Sixteen tokens make a batch.
  for (let index = 0; index < 16; index++) writer.token(0, index, 100 + index)
  await new Promise(setImmediate)
  expect(await kept.get('a')).toBeNull()
  isAway = false
  for (let index = 16; index < 32; index++) writer.token(0, index, 100 + index)
  writer.finish()
  await new Promise(setImmediate)
  expect(await kept.get('a')).toMatchObject({ tokens: [Array.from({ length: 32 }, (_, index) => 100 + index)] })
  expect(errors).toEqual(['away'])
})
