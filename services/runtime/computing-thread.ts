import { Worker } from 'node:worker_threads'

/**
 * Objects of a computing thread die within a step, and what lasts is no object of JavaScript's: a small nursery serves it
 * as well as the default one, which each thread would grow to tens of MiB.
 */
const nurseryMiB = 6

/** Starts a thread that blocks on shared memory rather than to return to an event loop. */
export function startComputingThread(module: URL, workerData: unknown): Worker {
  return new Worker(module, { workerData, resourceLimits: { maxYoungGenerationSizeMb: nurseryMiB } })
}
