import { Worker } from 'node:worker_threads'
import { announce, changed } from '../../services/runtime/signal.ts'

/**
 * Alarms finer than the whole milliseconds of `setTimeout`, without a loop that burns a core: one thread of the process
 * sleeps in `Atomics.wait`, which counts microseconds, and wakes the event loop. An alarm never rings early.
 */

/** Words that both threads share. */
export const sleeperWords = { armed: 0, rang: 1, size: 2 } as const

export type SleeperShared = {
  control: Int32Array<SharedArrayBuffer>
  /** [1] when to ring next, by `systemMs`; Infinity: not at all. */
  dueMs: Float64Array<SharedArrayBuffer>
}

/** Monotonic, the same on all threads of a machine: `performance.now()` counts from each thread's start. */
export function systemMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}

type Alarm = { dueMs: number; ring: (nowMs: number) => void }

export class Sleeper {
  readonly #shared: SleeperShared
  readonly #worker: Worker
  /** Ascending by `dueMs`: one or two for each node of the process. */
  readonly #alarms: Alarm[] = []
  #armedMs = Number.POSITIVE_INFINITY
  #isClosed = false

  constructor() {
    this.#shared = {
      control: new Int32Array(new SharedArrayBuffer(sleeperWords.size * 4)),
      dueMs: new Float64Array(new SharedArrayBuffer(8)).fill(Number.POSITIVE_INFINITY),
    }
    this.#worker = new Worker(new URL('./sleeper-thread.ts', import.meta.url), { workerData: this.#shared })
    void this.#listen()
  }

  /** Resolves with the time, at `dueMs` or as soon after it as threads are woken. */
  until(dueMs: number): Promise<number> {
    return new Promise((ring) => {
      const later = this.#alarms.findIndex((alarm) => alarm.dueMs > dueMs)
      this.#alarms.splice(later === -1 ? this.#alarms.length : later, 0, { dueMs, ring })
      this.#arm()
    })
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await this.#worker.terminate()
  }

  async #listen(): Promise<void> {
    const { control } = this.#shared
    for (let seen = 0; !this.#isClosed; ) {
      seen = await changed(control, sleeperWords.rang, seen)
      this.#armedMs = Number.POSITIVE_INFINITY
      const nowMs = systemMs()
      for (let first = this.#alarms[0]; first && first.dueMs <= nowMs; first = this.#alarms[0]) {
        this.#alarms.shift()
        first.ring(nowMs)
      }
      this.#arm()
    }
  }

  #arm(): void {
    const dueMs = this.#alarms[0]?.dueMs ?? Number.POSITIVE_INFINITY
    if (dueMs >= this.#armedMs) return
    this.#armedMs = dueMs
    this.#shared.dueMs[0] = dueMs
    announce(this.#shared.control, sleeperWords.armed)
  }
}
