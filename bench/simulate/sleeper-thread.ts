import { workerData } from 'node:worker_threads'
import { announce } from '../../services/runtime/signal.ts'
import { type SleeperShared, sleeperWords, systemMs } from './sleeper.ts'

/** The thread of a `Sleeper`: rings once for each time that it is armed, unless it is armed anew before. */
function run({ control, dueMs }: SleeperShared): never {
  let rangFor = -1
  for (;;) {
    const armed = Atomics.load(control, sleeperWords.armed)
    const leftMs = (dueMs[0] ?? Number.POSITIVE_INFINITY) - systemMs()
    if (leftMs <= 0 && rangFor !== armed) {
      rangFor = armed
      announce(control, sleeperWords.rang)
    }
    Atomics.wait(control, sleeperWords.armed, armed, rangFor === armed ? Number.POSITIVE_INFINITY : leftMs)
  }
}

run(workerData as SleeperShared)
