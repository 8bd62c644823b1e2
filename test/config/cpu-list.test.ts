import fc from 'fast-check'
import { expect, test } from 'vitest'
import { readCpuList } from '../../services/config/cpu-list.ts'

test('reads lists of CPUs as Linux writes them', () => {
  expect(readCpuList('0')).toEqual([0])
  expect(readCpuList('0-3,8')).toEqual([0, 1, 2, 3, 8])
  expect(readCpuList('2,0-2')).toEqual([2, 0, 1])
  for (const text of ['', 'any', '3-1', '0,', '-1', '0-', '1.5', '0 1', '12345'])
    expect(readCpuList(text)).toBeUndefined()
})

test('any set of CPUs, written down in any way, is read back', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat(500), { minLength: 1 }), (cpus) => {
      expect(readCpuList(cpus.map((cpu) => (cpu % 2 === 0 ? `${cpu}` : `${cpu}-${cpu}`)).join())).toEqual(cpus)
    }),
  )
})
