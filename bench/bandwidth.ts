import { Worker } from 'node:worker_threads'
import { z } from 'zod'

/** How fast this machine reads memory: what bounds decoding, whoever does it. */

const rounds = 10
const answer = z.number().positive()

/**
 * Bytes a second that `threads` threads read together, each its own buffer, far larger than caches. The best of several
 * rounds: what others take away is not the machine's limit.
 */
export async function readBandwidth(threads: number): Promise<number> {
  const workers = Array.from({ length: threads }, () => new Worker(new URL('./bandwidth-worker.ts', import.meta.url)))
  try {
    // Their buffers are filled once they answer.
    await Promise.all(workers.map(next))
    const rates: number[] = []
    for (let round = 0; round < rounds; round++) {
      const answers = workers.map(next)
      for (const worker of workers) worker.postMessage('read')
      rates.push((await Promise.all(answers)).reduce((sum, rate) => sum + rate, 0))
    }
    return Math.max(...rates)
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()))
  }
}

function next(worker: Worker): Promise<number> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: unknown) => {
      worker.off('error', onError)
      resolve(answer.parse(message))
    }
    const onError = (error: unknown) => {
      worker.off('message', onMessage)
      reject(error)
    }
    worker.once('message', onMessage).once('error', onError)
  })
}
