import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'

const signal = new URL('../../services/runtime/signal.ts', import.meta.url).href

/** Runs `body` on `count` threads that share a barrier and an array of integers; what each of them returned. */
async function onThreads(count: number, looks: number, body: string): Promise<unknown[]> {
  const control = new Int32Array(new SharedArrayBuffer(16))
  const shared = new Int32Array(new SharedArrayBuffer(64))
  const code = `
    import { parentPort, workerData } from 'node:worker_threads'
    import { Barrier, BarrierBroken } from ${JSON.stringify(signal)}
    const { control, shared, thread, count, looks } = workerData
    const barrier = new Barrier(control, 0, count, looks)
    parentPort.postMessage((() => { ${body} })())`
  const answers = Array.from({ length: count }, (_, thread) => {
    const workerData = { control, shared, thread, count, looks }
    return once(new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData }), 'message')
  })
  return (await Promise.all(answers)).map(([answer]) => answer)
}

test.each([
  { count: 1, looks: 0 },
  { count: 2, looks: 0 },
  { count: 2, looks: 1000 },
  { count: 3, looks: 0 },
  { count: 3, looks: 50 },
])('$count threads that look $looks times leave a barrier when all have come, 2000 times', async ({ count, looks }) => {
  const late = await onThreads(
    count,
    looks,
    `let late = 0
     for (let round = 1; round <= 2000; round++) {
       Atomics.add(shared, 0, 1)
       barrier.wait()
       if (Atomics.load(shared, 0) !== round * count) late++
       barrier.wait()
     }
     return late`,
  )
  expect(late).toEqual(Array(count).fill(0))
})

test.each([0, 1000])('a broken barrier lets nobody wait, having looked %s times', async (looks) => {
  const ended = await onThreads(
    3,
    looks,
    `if (thread === 0) { barrier.break(); return 'broke it' }
     try { barrier.wait(); return 'passed' } catch (thrown) { return thrown instanceof BarrierBroken ? 'broken' : 'else' }`,
  )
  expect(ended).toEqual(['broke it', 'broken', 'broken'])
})
