import assert from 'node:assert/strict'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { MoeshError } from '../config/errors.ts'
import type { OutputBuffer, RowBuffer } from '../dispatch/rows.ts'
import { bindThisThread } from '../runtime/cpus.ts'
import { kernelMs } from '../runtime/inside.ts'
import { announce, waitForChange } from '../runtime/signal.ts'
import { RankExperts } from './rank-experts.ts'
import { controlWords, type FromRank, jobHeader, type RankSetup, type ToRank } from './rank-protocol.ts'

/**
 * A rank: one thread that computes the rows of the experts it holds. It sleeps until its host posts a job, computes the
 * job's rows out of shared memory into shared memory, and says so.
 */

const setup = workerData as RankSetup
assert(parentPort !== null)
const port = parentPort

const { control, cpu } = setup
if (cpu !== null) bindThisThread(cpu)
const experts = new RankExperts(setup.spec, setup.format, setup)
const rowBuffers = new Map<number, RowBuffer>()
const outputBuffers = new Map<number, OutputBuffer>()
let job = new Int32Array(new SharedArrayBuffer(0))

/**
 * Runs the posted job. The rows of expert i of the job are `counts[i]` consecutive entries of its row indices, and of
 * its outputs. Experts of other ranks are passed over.
 */
function compute(): void {
  const layer = job[jobHeader.layer] ?? 0
  const count = job[jobHeader.experts] ?? 0
  const rows = rowBuffers.get(job[jobHeader.rowsId] ?? 0)
  const outputs = outputBuffers.get(job[jobHeader.outputsId] ?? 0)
  assert(rows !== undefined)
  assert(outputs !== undefined)
  const indicesAt = jobHeader.size + 2 * count
  const computed = experts.compute({
    layer,
    experts: job.subarray(jobHeader.size, jobHeader.size + count),
    counts: job.subarray(jobHeader.size + count, indicesAt),
    rowIndices: job.subarray(indicesAt, indicesAt + (job[jobHeader.rows] ?? 0)),
    rows,
    outputs,
    outputStart: job[jobHeader.outputStart] ?? 0,
  })
  assert.equal(computed, job[jobHeader.rowsHere], `layer ${layer}: rows computed and rows asked for`)
}

/** Builds, step by step between the jobs, what an unload will leave. */
function prepareUnload(ticket: number, layer: number, gone: readonly number[]): void {
  const steps = experts.stepsBeforeUnload(layer, gone)
  const next = () =>
    settle(ticket, () => {
      const step = steps.shift()
      if (step === undefined) return true
      try {
        step()
      } catch (thrown) {
        experts.forgetSteps()
        throw thrown
      }
      tasks.unshift({ kind: 'step', work: next })
      return false
    })
  next()
}

/** Loading and unloading, which wait while there are rows to compute. */
const tasks: (Exclude<ToRank, { kind: `attach-${string}` }> | { kind: 'step'; work: () => void })[] = []

let received = 0

/** Attachments take effect at once: the job that needs them may be posted already. */
function receive(): void {
  for (; received !== Atomics.load(control, controlWords.sent); received++) {
    const next = receiveMessageOnPort(port)
    assert(next !== undefined)
    const message = next.message as ToRank
    if (message.kind === 'attach-rows') rowBuffers.set(message.rows.id, message.rows)
    else if (message.kind === 'attach-outputs') outputBuffers.set(message.outputs.id, message.outputs)
    else if (message.kind === 'attach-job') job = message.job
    else tasks.push(message)
  }
}

/** `work` returns false when there is more to come before the answer. */
function settle(ticket: number, work: () => unknown): void {
  let answer: FromRank = { kind: 'done', ticket }
  try {
    if (work() === false) return
  } catch (thrown) {
    const code = thrown instanceof MoeshError ? thrown.code : 'INTERNAL'
    answer = { kind: 'failed', ticket, code, message: thrown instanceof Error ? thrown.message : String(thrown) }
  }
  port.postMessage(answer)
}

function computeJob(): void {
  const started = performance.now()
  try {
    compute()
    Atomics.store(control, controlWords.failed, 0)
  } catch (thrown) {
    const answer: FromRank = { kind: 'job-failed', message: thrown instanceof Error ? thrown.message : String(thrown) }
    port.postMessage(answer)
    Atomics.store(control, controlWords.failed, 1)
  }
  setup.computeMs[0] = performance.now() - started
  setup.computeMs[1] = kernelMs()
  announce(control, controlWords.finished)
}

function serve(): void {
  for (;;) {
    const seen = Atomics.load(control, controlWords.wake)
    // Looked at before the messages are read: what a posted job needs was sent before it.
    const hasJob = Atomics.load(control, controlWords.posted) !== Atomics.load(control, controlWords.finished)
    receive()
    if (hasJob) {
      computeJob()
      continue
    }
    const task = tasks.shift()
    if (task === undefined) waitForChange(control, controlWords.wake, seen)
    else if (task.kind === 'load') settle(task.ticket, () => experts.load(task.layer, task.shards))
    else if (task.kind === 'prepare-unload') prepareUnload(task.ticket, task.layer, task.experts)
    else if (task.kind === 'step') task.work()
    else if (task.kind === 'unload') settle(task.ticket, () => experts.unload(task.layer, task.experts))
    else break
  }
  experts.dispose()
}

serve()
port.close()
