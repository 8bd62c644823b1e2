import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { Store } from '../../services/cluster/store.ts'
import { Simulation, shardCount } from './simulation.ts'

/**
 * Each file under scenarios/ tells what happens to a cluster and what shall follow; `=>` lines are the events that the
 * step before them causes, all of them, in order. At every step no node may drop the last live copy of an expert.
 */
const directory = new URL('./scenarios/', import.meta.url)

describe('scenario', () => {
  for (const file of readdirSync(directory).sort()) {
    const lines = readFileSync(new URL(file, directory), 'utf8').split('\n')
    test(`${lines[0]?.replace(/^# */, '')} (${file})`, () => play(lines))
  }
})

type EventPage = Awaited<ReturnType<Store['readEvents']>>

async function play(lines: readonly string[]): Promise<void> {
  const world = new Simulation()
  let cursor: string | null = '0'
  let expected: string[] | null = null
  let seen: string[] = []
  const checkEvents = (line: number) => {
    if (expected !== null) expect(seen, `events before line ${line}`).toEqual(expected)
    expected = null
  }
  for (const [index, raw] of lines.entries()) {
    const line = raw.replace(/#.*/, '').trim()
    if (line === '') continue
    if (line.startsWith('=>')) {
      expected ??= []
      if (line !== '=> nothing') expected.push(line.slice(2).trim())
      continue
    }
    checkEvents(index + 1)
    await step(world, line.split(/\s+/), index + 1)
    if (line.startsWith('pass')) {
      const read: EventPage | null = world.store.isAway
        ? null
        : await world.store.seenBy('the reader').readEvents(cursor, 1000)
      cursor = read?.cursor ?? cursor
      seen = (read?.events ?? []).map(({ kind, text }) => `${kind}: ${text.replace(/; \d+ copies to load$/, '')}`)
    }
  }
  checkEvents(lines.length)
  expect(world.errors).toEqual([])
}

async function step(world: Simulation, words: readonly string[], line: number): Promise<void> {
  const [verb = '', subject = '', ...rest] = words
  const store = world.store.seenBy('the operator')
  const expert = () => {
    const found = world.experts.get(subject)
    if (!found) throw new Error(`line ${line}: there is no expert ${subject}`)
    return found
  }
  switch (verb) {
    case 'replicas':
      world.minReplicas = Number(subject)
      break
    case 'coordinator':
      await world.coordinator(subject)
      break
    case 'expert':
      await world.expert(subject, JSON.parse(rest.join(' ') || '{}'))
      break
    case 'pass':
      await world.clock.advance(Number(subject))
      break
    case 'kill':
      world.kill(subject)
      break
    case 'leave':
      expert().leave()
      break
    case 'stuck':
      expert().isStuck = true
      break
    case 'drain':
      await store.setDrained(subject, 'operator')
      break
    case 'undrain':
      await store.setDrained(subject, null)
      break
    case 'suspend':
      await store.setSuspended(subject, rest.join(' '))
      break
    case 'store':
      if (subject === 'empty') world.store.restartEmpty()
      else if (subject === 'hintless') world.store.hasHints = false
      else world.store.isAway = subject === 'away'
      break
    case 'copies':
      expect(world.fewestCopies(), `line ${line}`).toBe(Number(subject))
      break
    case 'holds': {
      const count = rest[0] === 'all' ? shardCount : Number(rest[0])
      expect(world.experts.get(subject)?.shards() ?? 0, `line ${line}: shards of ${subject}`).toBe(count)
      break
    }
    case 'leader': {
      const leaders = [...world.coordinators].filter(([, { controller }]) => controller.isLeader()).map(([id]) => id)
      expect(leaders, `line ${line}`).toEqual([subject])
      break
    }
    case 'active': {
      const [coordinator] = world.coordinators.values()
      expect(coordinator?.controller.active()?.epoch, `line ${line}`).toBe(Number(subject))
      break
    }
    case 'drained':
    case 'suspended': {
      const [coordinator] = world.coordinators.values()
      expect([...(coordinator?.membership.view()[verb].keys() ?? [])], `line ${line}`).toEqual([subject])
      break
    }
    default:
      throw new Error(`line ${line}: what is "${verb}"?`)
  }
}
