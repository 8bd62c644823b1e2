import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { jointRate } from '../../bench/bandwidth.ts'
import { busyTicks, othersCores, parseStat } from '../../bench/disturbance.ts'
import { decodeStepBytes, ourStorage, peerStorage } from '../../bench/model-bytes.ts'
import { readOptions } from '../../bench/options.ts'
import { Arrivals } from '../../bench/ours.ts'
import { reportText } from '../../bench/report.ts'
import { rowPlans } from '../../bench/rows.ts'
import { benchShapes } from '../../bench/shape.ts'
import { type Measured, measurePairs, summarise, summarisePairs } from '../../bench/statistics.ts'

describe('pairs', () => {
  const quiet = (result: number): Measured => ({ result, othersCores: 0 })

  test.each([
    { values: [3, 1, 2], summary: { min: 1, median: 2, max: 3 } },
    { values: [4, 1, 3, 2], summary: { min: 1, median: 2.5, max: 4 } },
    { values: [5], summary: { min: 5, median: 5, max: 5 } },
  ])('the median of $values', ({ values, summary }) => {
    expect(summarise(values)).toEqual(summary)
  })

  test('both sides are measured in turn, after one run of each that does not count; who begins changes', async () => {
    const order: string[] = []
    const side = (name: string) => async () => {
      order.push(name)
      return quiet(order.length)
    }
    const pairs = await measurePairs({ pairs: 3, othersCoresMax: 0.1, ours: side('ours'), peer: side('peer') })
    expect(order).toEqual(['ours', 'peer', 'ours', 'peer', 'peer', 'ours', 'ours', 'peer'])
    expect(pairs).toEqual({ ours: [3, 6, 7], peer: [4, 5, 8], othersCores: 0, repeated: 0 })
  })

  test('the ratio is taken pair by pair', () => {
    const { ratio } = summarisePairs({ ours: [2, 20, 300], peer: [1, 40, 100] })
    expect(ratio).toEqual({ min: 0.5, median: 2, max: 3 })
  })

  test('a disturbed pair is measured again, but not for ever', async () => {
    const others = [0, 0.5, 0, 0]
    let runs = 0
    const peer = async () => ({ result: 1, othersCores: others[runs++] ?? 0 })
    const once = await measurePairs({ pairs: 2, othersCoresMax: 0.1, ours: async () => quiet(1), peer })
    expect(once).toMatchObject({ repeated: 1, othersCores: 0 })
    const always = async () => ({ result: 1, othersCores: 1 })
    const never = await measurePairs({ pairs: 2, othersCoresMax: 0.1, ours: always, peer: always })
    expect(never).toMatchObject({ ours: [1, 1], repeated: 4, othersCores: 1 })
  })
})

describe('tokens that arrive', () => {
  test('only steps that all sequences decode together count', () => {
    const arrivals = new Arrivals(2, 4)
    // The first one decodes alone, slowly, while the second one's prompt is read.
    for (const ms of [0, 500, 1000]) arrivals.add(0, 1, ms)
    for (let ms = 1100; ms <= 2000; ms += 100) {
      arrivals.add(0, 1, ms)
      arrivals.add(1, 1, ms)
    }
    // 4 steps at 100 ms, in which both get a token.
    expect(arrivals.seconds()).toBeCloseTo(0.4)
  })

  test('measuring is complete when the last sequence has its steps', async () => {
    const arrivals = new Arrivals(2, 1)
    arrivals.add(0, 2, 0)
    arrivals.add(1, 2, 10)
    arrivals.add(0, 1, 20)
    let isComplete = false
    const complete = arrivals.complete.then(() => {
      isComplete = true
    })
    await new Promise((resolve) => setImmediate(resolve))
    expect(isComplete).toBe(false)
    arrivals.add(1, 1, 30)
    await complete
  })
})

test('what threads read together counts from the first start to the last end', () => {
  const one = { bytes: 1e9, fromMs: 1000, toMs: 2000 }
  expect(jointRate([one, one])).toBe(2e9)
  expect(jointRate([one, { bytes: 1e9, fromMs: 2000, toMs: 3000 }])).toBe(1e9)
})

describe('others on the machine', () => {
  test('what neither idles nor waits is busy, whoever took it', () => {
    expect(busyTicks('cpu  10 20 30 4000 500 6 7 8 900 1000')).toBe(10 + 20 + 30 + 6 + 7 + 8)
  })

  test("a process' parent and time, with a name like code", () => {
    const fields = ['S', '77', ...Array(9).fill('0'), '120', '30', '5', '5', '20']
    expect(parseStat(`4711 (a) b (c) ${fields.join(' ')}`)).toEqual({ parent: 77, ticks: 150 })
  })

  test('what is not our own is theirs', () => {
    const before = { allSeconds: 100, ownSeconds: 40 }
    expect(othersCores(before, { allSeconds: 103, ownSeconds: 42 }, 2)).toBe(0.5)
    expect(othersCores(before, { allSeconds: 102, ownSeconds: 42.1 }, 2)).toBe(0)
  })
})

test('a step of one sequence reads its experts, of many sequences nearly all', () => {
  const shape = benchShapes['olmoe-4l']
  const megabytes = (sequences: number) => decodeStepBytes(shape, ourStorage('int8'), sequences, 128) / 1e6
  // A hand count: 103 of head, 67 of attention, 201 of experts, 10 of keys, values, scales and routers.
  expect(megabytes(1)).toBeGreaterThan(375)
  expect(megabytes(1)).toBeLessThan(390)
  expect(megabytes(32)).toBeGreaterThan(1800)
  const peer = (format: 'Q8_0' | 'Q4_0') => decodeStepBytes(shape, peerStorage(format), 1, 128) / 1e6
  expect(peer('Q4_0')).toBeLessThan(0.56 * peer('Q8_0'))
})

const contract = join(import.meta.dirname, '..', '..', '..', 'shared', 'api', 'README.md')

test.skipIf(!existsSync(contract))('rows are named as the contract says (skipped without ../shared/api)', () => {
  const text = readFileSync(contract, 'utf8')
  const [, section = ''] = text.split('## Benchmark results')
  const named = [...section.matchAll(/`((?:prefill|decode|grpc)-[^`]+)`/g)].map(([, name = '']) => name)
  const known = new Set(rowPlans.map(({ name }) => name))
  const wanted = named.flatMap((name) =>
    name.endsWith('/FORMAT') ? ['int8', 'int8-fast', 'int4'].map((format) => name.replace('FORMAT', format)) : [name],
  )
  expect(wanted.length).toBeGreaterThan(10)
  expect(wanted.filter((name) => !known.has(name))).toEqual([])
})

test('options of the run are read, and wrong ones named', () => {
  expect(readOptions(['--rows', 'decode-1/', '--pairs', '7', '--shape', 'tiny', '--json', 'f'])).toMatchObject({
    pairs: 7,
    threads: 2,
    json: 'f',
    shape: { name: 'tiny' },
  })
  expect(readOptions(['--help'])).toBe('help')
  expect(readOptions(['--list'])).toBe('list')
  expect(() => readOptions(['--pairs', '0'])).toThrow('--pairs: "0" is not a whole number above 0')
  expect(() => readOptions(['--shape', 'huge'])).toThrow('--shape: there is no "huge"')
  expect(() => readOptions(['--rows', '('])).toThrow('--rows: "(" is no regular expression')
})

test('a report names machine, rows, doubtful rows and failures', () => {
  const three = { min: 1, median: 2, max: 3 }
  const text = reportText({
    machine: {
      date: '2026-01-01T00:00:00.000Z',
      commit: 'abc',
      cpu: 'Some CPU',
      cores: 2,
      memoryBytes: 2 ** 34,
      kernel: 'linux',
      node: '24',
      onnxruntime: '1',
      peer: 'llama.cpp',
      threads: 2,
      shape: 'tiny',
      readBandwidth: 2e10,
      loadBefore: [1, 2, 3],
      loadAfter: [4, 5, 6],
    },
    rows: [
      {
        row: 'decode-1/int8',
        unit: 'tokens/s',
        ours: three,
        peer: three,
        ratio: three,
        pairs: 5,
        repeated: 0,
        othersCores: 0.9,
        against: 'Q8_0',
        readBandwidth: { min: 1e10, median: 1.5e10, max: 2e10 },
        bandwidthFraction: { ours: 0.5, peer: 0.25 },
        load: [1, 1],
      },
    ],
    failed: [{ row: 'prefill-128/int8', error: 'no' }],
  })
  expect(text).toContain('Some CPU, 2 cores, 16.0 GiB')
  expect(text).toContain('20.0 GB/s read by 2 threads')
  expect(text).toMatch(
    /decode-1\/int8 +2\.00 \(1\.00…3\.00\) .* 15\.0 \(10\.0…20\.0\) +50 %, 25 % .* 0\.90 \(!\) +Q8_0/,
  )
  expect(text).toContain('prefill-128/int8 failed: no')
})
