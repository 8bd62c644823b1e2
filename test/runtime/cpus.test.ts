import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { claimCpus, placeThreads } from '../../services/runtime/cpus.ts'

const machine = { allowed: [0, 1, 4, 5], canBind: true }

test('threads get a CPU each where the process has exactly as many', () => {
  expect(placeThreads(4, undefined, machine)).toEqual([0, 1, 4, 5])
  for (const threads of [1, 3, 5]) expect(placeThreads(threads, undefined, machine)).toBeNull()
  expect(placeThreads(4, undefined, { ...machine, canBind: false })).toBeNull()
  expect(placeThreads(4, undefined, { allowed: null, canBind: true })).toBeNull()
  expect(placeThreads(4, 'any', machine)).toBeNull()
})

test('a list is taken as it is, or refused with what is wrong', () => {
  expect(placeThreads(2, [5, 0, 1], machine)).toEqual([5, 0])
  expect(() => placeThreads(2, [0, 2], machine)).toThrow(/CPU 2, only 0,1,4,5/)
  expect(() => placeThreads(3, [0, 1], machine)).toThrow(/3 computing threads have only 2 CPUs/)
  expect(() => placeThreads(1, [0], { ...machine, canBind: false })).toThrow(/taskset/)
})

const own = claimCpus(availableParallelism(), undefined)
const first = own?.[0]

test.skipIf(first === undefined)('a thread binds itself, and only itself', async () => {
  const code = `
    import { readFileSync } from 'node:fs'
    import { parentPort } from 'node:worker_threads'
    import { bindThisThread } from ${JSON.stringify(new URL('../../services/runtime/cpus.ts', import.meta.url).href)}
    bindThisThread(${first})
    const of = (who) => /Cpus_allowed_list:\\s*(\\S+)/.exec(readFileSync('/proc/' + who + '/status', 'utf8'))[1]
    parentPort.postMessage({ thread: of('thread-self'), process: of('self') })`
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
  const [told] = await once(worker, 'message')
  expect(told.thread).toBe(`${first}`)
  expect(own).toHaveLength(availableParallelism())
  if (availableParallelism() > 1) expect(told.process).not.toBe(`${first}`)
})

test.skipIf(first === undefined)('a process keeps to the CPUs that it was given', () => {
  const code = `
    import { readFileSync } from 'node:fs'
    import { claimCpus } from ${JSON.stringify(new URL('../../services/runtime/cpus.ts', import.meta.url).href)}
    const cpus = claimCpus(1, [${first}])
    process.stdout.write(cpus + ' ' + /Cpus_allowed_list:\\s*(\\S+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1])`
  const args = ['--input-type=module', '-e', code]
  expect(execFileSync(process.execPath, args, { encoding: 'utf8' })).toBe(`${first} ${first}`)
})
