import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * How much of the machine others used while something was measured. Threads that wait for each other by spinning, as
 * the peer's do, become many times slower once something else runs on their cores, and threads that sleep do not: a
 * ratio from a busy machine says nothing. So a measurement is repeated where others took part.
 */

/** Cores' worth of computing that count as quiet. */
export const othersCoresMax = 0.15
/** Waits at most so long for a quiet moment before it measures all the same. */
const quietWaitMs = 30_000
const quietWindowMs = 250

/** Seconds of CPU time since the machine started, over all cores: of everybody, and of this process and its children. */
export type CpuTimes = { allSeconds: number; ownSeconds: number }

/** Cores' worth of computing by others between two readings. */
export function othersCores(before: CpuTimes, after: CpuTimes, seconds: number): number {
  const all = after.allSeconds - before.allSeconds
  const own = after.ownSeconds - before.ownSeconds
  return Math.max(0, (all - own) / seconds)
}

export type Watched<T> = { result: T; othersCores: number | null }

/** Runs `work` in a quiet moment, if one comes. `othersCores` is null where the system does not tell. */
export async function watch<T>(work: () => Promise<T>): Promise<Watched<T>> {
  await quietMoment()
  return watchNow(work)
}

/** The same at once, quiet or not. */
export async function watchNow<T>(work: () => Promise<T>): Promise<Watched<T>> {
  const before = readCpuTimes()
  const startMs = performance.now()
  const result = await work()
  return { result, othersCores: since(before, startMs) }
}

async function quietMoment(): Promise<void> {
  const untilMs = performance.now() + quietWaitMs
  while (performance.now() < untilMs) {
    const before = readCpuTimes()
    if (before === null) return
    const startMs = performance.now()
    await sleep(quietWindowMs)
    if ((since(before, startMs) ?? 0) <= othersCoresMax) return
  }
}

function since(before: CpuTimes | null, startMs: number): number | null {
  const after = readCpuTimes()
  if (before === null || after === null) return null
  return othersCores(before, after, (performance.now() - startMs) / 1000)
}

/** Linux counts in hundredths of a second towards programs, whatever the kernel's own clock. */
const ticksPerSecond = 100

/** null where there is no /proc. */
function readCpuTimes(): CpuTimes | null {
  try {
    const [line = ''] = readFileSync('/proc/stat', 'utf8').split('\n')
    return { allSeconds: busyTicks(line) / ticksPerSecond, ownSeconds: ownTicks() / ticksPerSecond }
  } catch {
    return null
  }
}

/** The first line of /proc/stat: what is neither idle nor waiting, time that the host took away included. */
export function busyTicks(line: string): number {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = line.split(/\s+/).slice(1).map(Number)
  return user + nice + system + irq + softirq + steal
}

/** Of this process and all below it. Those that end in between are missing, and count as others: none should. */
function ownTicks(): number {
  const processes = new Map<number, { parent: number; ticks: number }>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      processes.set(Number(name), parseStat(readFileSync(`/proc/${name}/stat`, 'utf8')))
    } catch {
      // It ended just now.
    }
  }
  let ticks = 0
  for (const [pid, { ticks: used }] of processes) {
    if (descends(pid, processes)) ticks += used
  }
  return ticks
}

function descends(pid: number, processes: ReadonlyMap<number, { parent: number }>): boolean {
  // A parent may have ended and its number have come back: no chain is longer than there are processes.
  let ancestor: number | undefined = pid
  for (let steps = 0; ancestor !== undefined && steps <= processes.size; steps++) {
    if (ancestor === process.pid) return true
    ancestor = processes.get(ancestor)?.parent
  }
  return false
}

/** `PID (NAME) STATE PARENT …`: the name may hold blanks and parentheses. */
export function parseStat(text: string): { parent: number; ticks: number } {
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  const [parent, user, system] = [fields[1], fields[11], fields[12]].map(Number)
  return { parent: parent ?? 0, ticks: (user ?? 0) + (system ?? 0) }
}
