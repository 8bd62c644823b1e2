import { Worker } from 'node:worker_threads'
import { z } from 'zod'

/** How fast this machine reads memory: what bounds decoding, whoever does it. */

const rounds = 10
const answer = z.number().positive()

/** Threads that read a buffer of their own each, far larger than caches, for a moment whenever they are asked. */
export class BandwidthGauge {
  readonly #workers: readonly Worker[]

  private constructor(workers: readonly Worker[]) {
    this.#workers = workers
  }

  static async start(threads: number): Promise<BandwidthGauge> {
    const workers = Array.from({ length: threads }, () => new Worker(new URL('./bandwidth-worker.ts', import.meta.url)))
    const gauge = new BandwidthGauge(workers)
    try {
      // Their buffers are filled once they answer.
      await Promise.all(workers.map(next))
      return gauge
    } catch (error) {
      await gauge.close()
      throw error
    }
  }

  /** Bytes a second that all threads read together, now. */
  async read(): Promise<number> {
    const answers = this.#workers.map(next)
    for (const worker of this.#workers) worker.postMessage('read')
    return (await Promise.all(answers)).reduce((sum, rate) => sum + rate, 0)
  }

  /** The best of several rounds: what others take away is not the machine's limit. */
  async readBest(): Promise<number> {
    let best = 0
    for (let round = 0; round < rounds; round++) best = Math.max(best, await this.read())
    return best
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()))
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
