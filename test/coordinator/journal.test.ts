import { expect, test } from 'vitest'
import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import { createMemoryJournal, createStoreJournal, type Journal } from '../../services/coordinator/journal.ts'

const clock = { ms: 0 }
const open = (requestsMax = 3): Journal => createMemoryJournal({ keepMs: 1000, requestsMax, nowMs: () => clock.ms })

test('batches may come twice, never leave a gap, and candidates are apart', async () => {
  const journal = open()
  await journal.put('a', '{}')
  await journal.append('a', 1, 0, [7])
  await journal.append('a', 0, 0, [1, 2, 3])
  await journal.append('a', 0, 1, [2, 3, 4])
  await journal.append('a', 0, 9, [99])
  await journal.append('a', 0, 0, [1])
  await journal.append('other', 0, 0, [5])
  await journal.countResume('a')
  expect(await journal.get('a')).toEqual({ request: '{}', tokens: [[1, 2, 3, 4], [7]], resumed: 1 })
  expect(await journal.get('other')).toBeNull()
})

test('entries are forgotten when unused for long, and the oldest when there are too many', async () => {
  const journal = open()
  for (const id of ['a', 'b', 'c']) await journal.put(id, id)
  clock.ms += 900
  await journal.append('a', 0, 0, [1])
  await journal.put('d', 'd')
  expect(await journal.get('b')).toBeNull()
  clock.ms += 200
  expect(await journal.get('c')).toBeNull()
  expect(await journal.get('a')).toMatchObject({ tokens: [[1]] })
})

test('a store that came back empty gets the entries of running requests again', async () => {
  const empty = () => createMemoryStore({ nowMs: () => clock.ms })
  let store = empty()
  const journal = createStoreJournal(
    {
      journalPut: (...args) => store.journalPut(...args),
      journalAppend: (...args) => store.journalAppend(...args),
      journalResume: (...args) => store.journalResume(...args),
      journalGet: (id) => store.journalGet(id),
    },
    'c1',
    1000,
  )
  await journal.put('runs', 'request')
  await journal.append('runs', 0, 0, [1, 2])
  await journal.put('ended', 'request')
  await journal.finish('ended')
  await store.journalPut('taken up', 'c2', 'request', 1000)
  await store.journalAppend('taken up', 0, 0, [7], 1000)
  await journal.countResume('taken up')
  store = empty()
  await journal.append('runs', 0, 2, [3])
  expect(await journal.get('runs')).toBeNull()
  await journal.restore()
  expect(await journal.get('runs')).toMatchObject({ request: 'request', tokens: [[1, 2, 3]], resumed: 0 })
  expect(await journal.get('taken up')).toMatchObject({ tokens: [[7]], resumed: 1 })
  expect(await journal.get('ended')).toBeNull()
})
