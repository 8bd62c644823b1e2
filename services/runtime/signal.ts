/**
 * Threads that hand work to each other through shared memory: they sleep in `Atomics.wait` and are woken. Only at a barrier,
 * and only where each thread has a CPU of its own, they look a while before they sleep: elsewhere a thread that spins
 * burns the very CPU that its partner waits for.
 */

/** Blocks until the counter at `index` differs from `seen`; returns its value. */
export function waitForChange(control: Int32Array, index: number, seen: number): number {
  for (;;) {
    const value = Atomics.load(control, index)
    if (value !== seen) return value
    Atomics.wait(control, index, seen)
  }
}

/** The same on a thread with an event loop. It does not keep the process alive by itself. */
export async function changed(control: Int32Array, index: number, seen: number): Promise<number> {
  for (;;) {
    const value = Atomics.load(control, index)
    if (value !== seen) return value
    const waiting = Atomics.waitAsync(control, index, seen)
    if (waiting.async) await waiting.value
  }
}

/** Adds one and wakes whoever waits. */
export function announce(control: Int32Array, index: number): void {
  Atomics.add(control, index, 1)
  Atomics.notify(control, index)
}

/** A hint to the CPU, some 30 ns long. */
const { pause } = Atomics as typeof Atomics & { pause(): void }

/** Thrown on the threads of a barrier when one of them failed. */
export class BarrierBroken extends Error {}

/** Where `count` threads meet. A thread that fails breaks it, so that nobody waits for it. */
export class Barrier {
  readonly #control: Int32Array
  readonly #arrived: number
  readonly #generation: number
  readonly #broken: number
  readonly #count: number
  readonly #looks: number

  /** Uses three words of `control` from `index` on. `looks`: so often a thread looks for the others before it sleeps. */
  constructor(control: Int32Array, index: number, count: number, looks: number) {
    this.#control = control
    this.#arrived = index
    this.#generation = index + 1
    this.#broken = index + 2
    this.#count = count
    this.#looks = looks
  }

  wait(): void {
    if (this.#count === 1) return
    const control = this.#control
    const generation = Atomics.load(control, this.#generation)
    if (Atomics.add(control, this.#arrived, 1) + 1 === this.#count) {
      Atomics.store(control, this.#arrived, 0)
      announce(control, this.#generation)
    } else {
      for (let look = 0; look < this.#looks && Atomics.load(control, this.#generation) === generation; look++) pause()
      while (Atomics.load(control, this.#generation) === generation) {
        if (Atomics.load(control, this.#broken) !== 0) break
        Atomics.wait(control, this.#generation, generation)
      }
    }
    if (Atomics.load(control, this.#broken) !== 0) throw new BarrierBroken('another thread failed')
  }

  break(): void {
    Atomics.store(this.#control, this.#broken, 1)
    announce(this.#control, this.#generation)
  }

  /** While no thread is inside. */
  mend(): void {
    Atomics.store(this.#control, this.#arrived, 0)
    Atomics.store(this.#control, this.#broken, 0)
  }
}
