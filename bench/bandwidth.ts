import { Worker } from 'node:worker_threads'
import { z } from 'zod'
import { claimCpus } from '../services/runtime/cpus.ts'

/** How fast this machine reads memory: what bounds decoding, whoever does it. */

const rounds = 10
const reading = z.object({ bytes: z.number(), fromMs: z.number(), toMs: z.number() })

/** What one thread read, and when. */
export type Reading = z.infer<typeof reading>

/**
 * Bytes a second of all together, from the first one's start to the last one's end: a thread that begins late had the
 * memory to itself afterwards, and their rates added up would be more than there is.
 */
export function jointRate(readings: readonly Reading[]): number {
  const fromMs = Math.min(...readings.map((it) => it.fromMs))
  const toMs = Math.max(...readings.map((it) => it.toMs))
  return (1000 * readings.reduce((sum, { bytes }) => sum + bytes, 0)) / (toMs - fromMs)
}

/** Threads that read a buffer of their own each, far larger than caches, for a moment whenever they are asked. */
export class BandwidthGauge {
  readonly #workers: readonly Worker[]

  private constructor(workers: readonly Worker[]) {
    this.#workers = workers
  }

  static async start(threads: number): Promise<BandwidthGauge> {
    // As our own threads, which two on one CPU would wait for.
    const cpus = claimCpus(threads, undefined)
    const workers = Array.from(
      { length: threads },
      (_, index) =>
        new Worker(new URL('./bandwidth-worker.ts', import.meta.url), { workerData: cpus?.[index] ?? null }),
    )
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
    return jointRate((await Promise.all(answers)).map((it) => reading.parse(it)))
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

function next(worker: Worker): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: unknown) => {
      worker.off('error', onError)
      resolve(message)
    }
    const onError = (error: unknown) => {
      worker.off('message', onMessage)
      reject(error)
    }
    worker.once('message', onMessage).once('error', onError)
  })
}
