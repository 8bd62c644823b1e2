import fc from 'fast-check'
import { expect, test } from 'vitest'
import { StopStrings } from '../../services/coordinator/api/stop-strings.ts'

/** Character by character: the first end of any stop string wins, of those that end together the longest. */
function slow(text: string, stops: readonly string[], includesStop: boolean): { text: string; stop: string | null } {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0]
    if (found !== undefined) return { text: text.slice(0, includesStop ? end : end - found.length), stop: found }
  }
  return { text, stop: null }
}

test('gives the same text wherever the pieces are cut, and never the beginning of a stop string', () => {
  const letters = (max: number) => fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: max })
  fc.assert(
    fc.property(
      fc.array(letters(4), { maxLength: 12 }),
      fc.array(letters(4), { minLength: 1, maxLength: 3 }),
      fc.boolean(),
      (pieces, stops, includesStop) => {
        const matcher = new StopStrings(stops, includesStop)
        const expected = slow(pieces.join(''), stops, includesStop)
        let sent = ''
        let stop: string | null = null
        for (const piece of pieces) {
          const result = matcher.push(piece, true)
          sent += result.text
          stop = result.stop
          expect(expected.text.startsWith(sent)).toBe(true)
          if (stop !== null) break
        }
        if (stop === null) sent += matcher.flush()
        expect({ text: sent, stop }).toEqual(expected)
      },
    ),
    { seed: 20261124, numRuns: 3000 },
  )
})

test('a stop string that was complete too early does not count later, one that ends later does', () => {
  const matcher = new StopStrings(['end'], false)
  expect(matcher.push('the end', false)).toEqual({ text: 'the end', stop: null })
  expect(matcher.push(' the e', false)).toEqual({ text: ' the ', stop: null })
  expect(matcher.push('nd!', true)).toEqual({ text: '', stop: 'end' })
})
