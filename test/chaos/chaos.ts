import { setTimeout as sleep } from 'node:timers/promises'
import { TestCluster } from '../support/cluster.ts'
import { longestWaitMs, type StreamResult } from '../support/streams.ts'
import { type Fault, giveVolume, type Victims } from './faults.ts'
import type { Load } from './load.ts'
import { shuffle } from './random.ts'

/** What streams felt of a fault; times in ms. */
export type Row = {
  fault: string
  /** From the fault to the next token, of streams that ran when it came. */
  nextP50Ms: number
  nextMaxMs: number
  /** The longest wait for a token before the fault, and from it on until all was settled again. */
  calmMaxMs: number
  waitMaxMs: number
  settledMs: number
  retries: number
  resumes: number
  problems: string[]
}

const calmMs = 1500

/** Two coordinators, three expert nodes behind proxies, each with a disk of its own, and two copies of every expert. */
export function startChaosCluster(pack: string): Promise<TestCluster> {
  return TestCluster.start({
    pack,
    coordinators: 2,
    experts: 3,
    minReplicas: 2,
    expert: { proxied: true },
    beforeExpertStarts: giveVolume,
  })
}

/** One round: calm, the faults at once, their end, and all settled again. */
export async function round(
  cluster: TestCluster,
  load: Load,
  chosen: readonly Fault[],
  random: () => number,
): Promise<Row> {
  load.forget()
  const failuresBefore = load.failures.length
  const calmFromMs = performance.now()
  await sleep(calmMs)
  const order = shuffle([...cluster.experts], random)
  const victims = chosen.map(({ experts }): Victims => ({ cluster, experts: order.splice(0, experts) }))
  const each = (act: (fault: Fault, victims: Victims) => Promise<void> | undefined) =>
    Promise.all(chosen.map((fault, index) => act(fault, victims[index] ?? { cluster, experts: [] })))

  const faultMs = performance.now()
  const running = [...load.streams].filter(({ endedMs }) => endedMs === null)
  await each((fault, its) => fault.inject(its))
  await sleep(Math.max(...chosen.map(({ holdMs }) => holdMs)))
  await each((fault, its) => fault.heal(its))
  const problems: string[] = []
  const healedMs = performance.now()
  await cluster.settled(30_000).catch((thrown: Error) => problems.push(thrown.message))
  const settledMs = performance.now()
  for (const [index, fault] of chosen.entries()) {
    const found = await fault.check?.(victims[index] ?? { cluster, experts: [] })
    if (found) problems.push(found)
  }
  for (const { request, what } of load.failures.slice(failuresBefore)) problems.push(`request ${request}: ${what}`)
  const next = running.map((stream) => nextTokenMs(stream, faultMs)).filter((ms) => ms !== null)
  next.sort((a, b) => a - b)
  const streams = [...load.streams]
  return {
    fault: chosen.map(({ name }) => name).join(' + '),
    nextP50Ms: next[next.length >> 1] ?? 0,
    nextMaxMs: next.at(-1) ?? 0,
    calmMaxMs: Math.max(0, ...streams.map((stream) => longestWaitMs(stream, calmFromMs, faultMs - 1))),
    waitMaxMs: Math.max(0, ...streams.map((stream) => longestWaitMs(stream, faultMs, settledMs))),
    settledMs: settledMs - healedMs,
    retries: streams.reduce((sum, { retriedDispatches }) => sum + retriedDispatches, 0),
    resumes: streams.reduce((sum, { resumes }) => sum + resumes, 0),
    problems,
  }
}

/** Null for a stream that had no more tokens to come. */
function nextTokenMs({ tokens, endedMs }: StreamResult, faultMs: number): number | null {
  const next = tokens.find(({ atMs }) => atMs > faultMs)
  if (next) return next.atMs - faultMs
  return endedMs === null ? performance.now() - faultMs : null
}

/** Two at once, unless a rule forbids: three experts are there, and a coordinator's memory may not go with it. */
export function combination(faults: readonly Fault[], random: () => number): Fault[] {
  for (;;) {
    const [a, b] = shuffle([...faults], random)
    if (!a || !b || a.experts + b.experts > 3) continue
    const names = `${a.name} ${b.name}`
    // The journal is in Redis: who loses both at once cannot resume, and is told so.
    if (names.includes('leader') && names.includes('Redis')) continue
    return [a, b]
  }
}

export function table(rows: readonly Row[]): string {
  const head = ['fault', 'next p50', 'max', 'wait calm', 'wait max', 'settled', 'retries', 'resumes', '']
  const ms = (value: number) => `${Math.round(value)} ms`
  const lines = rows.map((row) => [
    row.fault,
    ms(row.nextP50Ms),
    ms(row.nextMaxMs),
    ms(row.calmMaxMs),
    ms(row.waitMaxMs),
    ms(row.settledMs),
    `${row.retries}`,
    `${row.resumes}`,
    row.problems.length === 0 ? 'ok' : `${row.problems.length} PROBLEMS`,
  ])
  const widths = head.map((_, at) => Math.max(...[head, ...lines].map((line) => line[at]?.length ?? 0)))
  const render = (line: readonly string[]) =>
    line.map((cell, at) => (at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0))).join('  ')
  return [head, ...lines].map(render).join('\n')
}
