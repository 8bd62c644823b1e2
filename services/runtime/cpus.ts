import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync, readlinkSync } from 'node:fs'
import { basename } from 'node:path'
import { readCpuList } from '../config/cpu-list.ts'
import { MoeshError } from '../config/errors.ts'

/**
 * Which CPU each computing thread runs on. Threads that are woken together and meet at a barrier need one each, and the
 * scheduler of Linux does not see to it: in a virtual machine a halted CPU counts as taken, so that a thread wakes where it
 * slept, beside another one, while a CPU idles (docs/log.md). There is no call for it in Node: `taskset` of util-linux
 * binds threads by their ids.
 */

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
  wanted: readonly number[] | 'any' | undefined,
  machine: Machine = thisMachine(),
): readonly number[] | null {
  const { allowed, canBind } = machine
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

/** Binds the calling thread; where that fails it stays as it is, since only its speed depends on it. */
export function bindThisThread(cpu: number): void {
  try {
    const thread = basename(readlinkSync('/proc/thread-self'))
    execFileSync('taskset', ['-pc', `${cpu}`, thread], { stdio: 'ignore' })
  } catch {}
}

function thisMachine(): Machine {
  try {
    const status = readFileSync('/proc/self/status', 'utf8')
    const allowed = readCpuList(/^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? '') ?? null
    return { allowed, canBind: spawnSync('taskset', ['-p', `${process.pid}`], { stdio: 'ignore' }).status === 0 }
  } catch {
    return { allowed: null, canBind: false }
  }
}
