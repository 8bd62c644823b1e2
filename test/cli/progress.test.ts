import { describe, expect, test } from 'vitest'
import { formatBytes, formatCount, formatSeconds } from '../../services/cli/bytes.ts'
import { ProgressBar, progressLine } from '../../services/cli/progress.ts'

describe('a line of progress', () => {
  const mebibyte = 2 ** 20
  test.each([
    {
      why: 'no rate yet',
      done: 0,
      rate: null,
      columns: 80,
      line: 'packing ▕░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░▏ 0% 0 B of 100 MiB',
    },
    {
      why: 'half-way',
      done: 50,
      rate: 10 * mebibyte,
      columns: 80,
      line: 'packing ▕████████████░░░░░░░░░░░▏ 50% 50.0 MiB of 100 MiB, 10.0 MiB/s, 5 s left',
    },
    {
      why: 'done',
      done: 100,
      rate: 10 * mebibyte,
      columns: 80,
      line: 'packing ▕█████████████████████████████████▏ 100% 100 MiB of 100 MiB, 10.0 MiB/s',
    },
    {
      why: 'a narrow terminal',
      done: 50,
      rate: 10 * mebibyte,
      columns: 40,
      line: 'packing 50% 50.0 MiB of 100 MiB, 10.0 M',
    },
  ])('$why', ({ done, rate, columns, line }) => {
    const drawn = progressLine('packing', { bytesDone: done * mebibyte, bytesTotal: 100 * mebibyte }, rate, columns)
    expect(drawn).toBe(line)
    expect(drawn.length).toBeLessThan(columns)
  })

  test('nothing to do is all done', () => {
    expect(progressLine('packing', { bytesDone: 0, bytesTotal: 0 }, null, 80)).toContain('100% 0 B of 0 B')
  })
})

describe('a progress bar', () => {
  const run = (isTTY: boolean) => {
    let nowMs = 0
    let written = ''
    const stream = { isTTY, columns: 80, write: (text: string) => (written += text) }
    const bar = new ProgressBar('packing', stream, () => nowMs)
    for (let bytesDone = 0; bytesDone <= 1000; bytesDone++) {
      bar.update({ bytesDone, bytesTotal: 1000 })
      nowMs += 10
    }
    bar.end()
    bar.end()
    return written
  }

  test('draws in place, ten times a second, and ends its line once', () => {
    const drawn = run(true)
    expect(drawn.split('\r').length - 1).toBe(102)
    expect(drawn.endsWith('100% 1000 B of 1000 B, 100 B/s\n')).toBe(true)
  })

  test('writes a line now and then where there is no terminal', () => {
    const lines = run(false).trimEnd().split('\n')
    expect(lines).toHaveLength(3)
    expect(lines.at(-1)).toMatch(/100% 1000 B of 1000 B/)
    expect(lines.join('')).not.toContain('\x1b')
  })
})

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1536, '1.50 KiB'],
  [12.5 * 1024, '12.5 KiB'],
  [200 * 2 ** 30, '200 GiB'],
])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text))

test.each([
  [999, '999'],
  [4_339_648, '4.34 M'],
  [46_700_000_000, '46.7 B'],
])('%d is %s', (count, text) => expect(formatCount(count)).toBe(text))

test.each([
  [0.2, '1 s'],
  [75, '1 min 15 s'],
  [7800, '2 h 10 min'],
])('%d seconds are %s', (seconds, text) => expect(formatSeconds(seconds)).toBe(text))
