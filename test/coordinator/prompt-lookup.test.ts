import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { PromptLookup } from '../../services/coordinator/prompt-lookup.ts'

/** What a lookup offers after each token of `said`, the first `given` known at once. */
function offers(said: readonly number[], given: number, countMax: number): number[][] {
  const lookup = new PromptLookup()
  return said.slice(given - 1).map((_, i) => lookup.propose(said.slice(0, given + i), countMax))
}

describe('guessing from what was said before', () => {
  const phrase = [11, 12, 13, 14, 15, 16, 17, 18]

  test('offers nothing until it was right once, then as much as it was right', () => {
    const said = [...phrase, 99, ...phrase]
    // 11 and 12 have to come again before 13 can be guessed.
    expect(offers(said, 11, 8).map((offer) => offer.length)).toEqual([0, 1, 2, 3, 4, 5, 6])
    expect(offers(said, 11, 2).map((offer) => offer.length)).toEqual([0, 1, 2, 2, 2, 2, 2])
    expect(offers(said, 11, 8)[2]).toEqual([15, 16])
  })

  test('is silent again after a token that it thought another', () => {
    const said = [...phrase, 99, 11, 12, 13, 14, 77, 78, 79]
    expect(offers(said, 11, 8).map((offer) => offer.length)).toEqual([0, 1, 2, 0, 0, 0])
  })

  test('goes by the longest match, and of equal ones by the latest', () => {
    const lookup = new PromptLookup()
    const said = [1, 2, 3, 50, 7, 2, 3, 60, 1, 2, 3]
    lookup.propose(said, 8)
    // Of 2, 3 the latest was followed by 60, but 1, 2, 3 by 50.
    expect(lookup.propose([...said, 50], 8)).toEqual([7])
  })

  test('a loop is guessed beyond its end', () => {
    const said = Array.from({ length: 30 }, (_, i) => i % 3)
    expect(offers(said, 1, 12).at(-1)).toEqual(Array.from({ length: 12 }, (_, i) => i % 3))
  })

  test('looks at the end of a long prompt only', () => {
    const prompt = Array.from({ length: 40_000 }, (_, i) => 1000 + i)
    const offered = (from: number) => {
      const lookup = new PromptLookup()
      let said = [...prompt, ...prompt.slice(from, from + 2)]
      for (const id of prompt.slice(from + 2, from + 6)) {
        lookup.propose(said, 4)
        said = [...said, id]
      }
      return lookup.propose(said, 4)
    }
    expect(offered(30_000)).toEqual(prompt.slice(30_006, 30_010))
    expect(offered(10_000)).toEqual([])
  })

  test('the same tokens are offered the same again, however often it is asked', () => {
    const lookup = new PromptLookup()
    const said = [...phrase, 99, ...phrase.slice(0, 5)]
    for (let length = 1; length <= said.length; length++) {
      const offer = lookup.propose(said.slice(0, length), 4)
      expect(lookup.propose(said.slice(0, length), 4)).toEqual(offer)
    }
  })

  test('never offers more than is asked for, nor more than it was right in a row, and only what was said', () => {
    const texts = fc.array(fc.nat(3), { minLength: 2, maxLength: 120 })
    fc.assert(
      fc.property(texts, fc.nat(10), (said, countMax) => {
        const lookup = new PromptLookup()
        let right = 0
        for (let length = 1; length <= said.length; ) {
          const offer = lookup.propose(said.slice(0, length), countMax)
          expect(offer.length).toBeLessThanOrEqual(Math.min(countMax, right))
          for (const id of offer) expect(said.slice(0, length)).toContain(id)
          // As a step does it: what was guessed right, and one more.
          const hits = offer.findIndex((id, i) => id !== said[length + i])
          const grown = 1 + (hits < 0 ? offer.length : hits)
          right = hits < 0 ? right + grown : 0
          length += grown
        }
      }),
      { seed: 7, numRuns: 300 },
    )
  })
})
