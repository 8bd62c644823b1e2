import { spawnSync } from 'node:child_process'
import { readFileSync, readlinkSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename } from 'node:path'
import { readCpuList } from '../config/cpu-list.ts'
import { MoeshError } from '../config/errors.ts'

/**
 * Which CPU each computing thread runs on. Threads that are woken together and meet at a barrier need one each, and the
 * scheduler of Linux does not see to it: in a virtual machine a halted CPU counts as taken, so that a thread wakes where it
 * slept, beside another one, while a CPU idles (docs/log.md). There is no call for it in Node: `taskset` of util-linux
 * binds threads by their ids.
 */

export type CpuChoice = readonly number[] | 'any'

/** Computing threads of a process that is not told how many: one for each CPU that it is given. */
export function defaultThreads(wanted: CpuChoice | undefined): number {
  return Array.isArray(wanted) ? wanted.length : availableParallelism()
}

/** What a process may use and do. */
export type Machine = {
  /** null: not known here. */
  allowed: readonly number[] | null
  canBind: boolean
}

/**
 * CPUs for `threads` computing threads, one each; null: the system places them. `wanted` undefined: one each where the
 * process has exactly as many, since then no other choice would be better. Errors: USAGE where `wanted` can't be had.
 */
export function placeThreads(
  threads: number,
  wanted: CpuChoice | undefined,
  { allowed, canBind }: Machine,
): readonly number[] | null {
  if (wanted === 'any') return null
  if (wanted === undefined) return canBind && allowed?.length === threads ? allowed : null
  if (!canBind || allowed === null) {
    throw new MoeshError('USAGE', '--cpus: threads can only be bound on Linux, with taskset', 'install util-linux')
  }
  const missing = wanted.find((cpu) => !allowed.includes(cpu))
  if (missing !== undefined) {
    throw new MoeshError('USAGE', `--cpus: this process may not use CPU ${missing}, only ${allowed.join(',')}`)
  }
  if (wanted.length < threads) {
    const hint = 'name one for each of --ranks or --threads'
    throw new MoeshError('USAGE', `--cpus: ${threads} computing threads have only ${wanted.length} CPUs`, hint)
  }
  return wanted.slice(0, threads)
}

/** The same for this process on this machine; a list is what all of the process keeps to from now on. */
export function claimCpus(threads: number, wanted: CpuChoice | undefined): readonly number[] | null {
  const cpus = placeThreads(threads, wanted, thisMachine())
  // What serves is woken beside what computes then, not on a CPU where another process does.
  if (cpus !== null && Array.isArray(wanted) && !taskset(['-a', '-pc', wanted.join(), `${process.pid}`])) {
    throw new MoeshError('USAGE', `--cpus: taskset could not bind this process to ${wanted}`, 'use --cpus any')
  }
  return cpus
}

/** Binds the calling thread; where that fails (false) it stays as it is, since only its speed depends on it. */
export function bindThisThread(cpu: number): boolean {
  return taskset(['-pc', `${cpu}`, basename(readlinkSync('/proc/thread-self'))])
}

function taskset(args: readonly string[]): boolean {
  return spawnSync('taskset', args, { stdio: 'ignore' }).status === 0
}

export function thisMachine(): Machine {
  try {
    const status = readFileSync('/proc/self/status', 'utf8')
    const allowed = readCpuList(/^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? '') ?? null
    return { allowed, canBind: taskset(['-p', `${process.pid}`]) }
  } catch {
    return { allowed: null, canBind: false }
  }
}
