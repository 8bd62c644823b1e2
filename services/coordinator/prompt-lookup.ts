/** Fewer equal tokens than this before a place are no reason to think that it goes on alike. */
const matchMin = 2
/** Matches are not told apart beyond this length. */
const matchMax = 16
/** Places looked at in a step, the latest first. */
const placesMax = 32
const hashBits = 13
/** Of a longer prompt only the end is looked at. */
const windowMax = 16_384

/**
 * Guesses how a sequence goes on: as it did after the place that has most in common with its end (prompt lookup: Saxena,
 * 2023; places are found through hash chains, as in DEFLATE). Every token is guessed silently, and only as many guesses are
 * offered as the last ones were right in a row, so text that repeats nothing costs no rows.
 */
export class PromptLookup {
  /** By hash of two tokens: where they last stood, by the second one; -1: nowhere. */
  readonly #last = new Int32Array(2 ** hashBits).fill(-1)
  /** By place, from `#first` on: the one before it with the same hash. */
  readonly #before: number[] = []
  #first = -1
  /** What was thought to follow the first `#known` tokens. */
  #guess: number[] = []
  #known = 0
  /** Tokens that were guessed right in a row. */
  #streak = 0

  /** At most `countMax` tokens that may follow. `tokens` has grown since the last call, or is the same. */
  propose(tokens: readonly number[], countMax: number): number[] {
    this.#judge(tokens)
    this.#index(tokens)
    const place = this.#find(tokens)
    const offered = Math.max(0, Math.min(countMax, this.#streak))
    // One more than is offered, to be judged for nothing.
    this.#guess = place < 0 ? [] : continuation(tokens, place, offered + 1)
    this.#known = tokens.length
    return this.#guess.slice(0, offered)
  }

  #judge(tokens: readonly number[]): void {
    for (let i = this.#known; i < tokens.length; i++) {
      if (this.#guess[i - this.#known] !== tokens[i]) {
        this.#streak = 0
        return
      }
      this.#streak += 1
    }
  }

  /** Every place but the last: nothing has followed that one. */
  #index(tokens: readonly number[]): void {
    if (this.#first < 0) this.#first = Math.max(1, tokens.length - windowMax)
    for (let place = this.#first + this.#before.length; place < tokens.length - 1; place++) {
      const hash = hashAt(tokens, place)
      this.#before.push(this.#last[hash] ?? -1)
      this.#last[hash] = place
    }
  }

  /** The latest of the places with the longest match; -1: there is none. */
  #find(tokens: readonly number[]): number {
    const end = tokens.length - 1
    let best = -1
    let longest = matchMin - 1
    let place = end < 1 ? -1 : (this.#last[hashAt(tokens, end)] ?? -1)
    for (let looked = 0; place >= 0 && looked < placesMax && longest < matchMax; looked++) {
      let length = 0
      while (length < matchMax && length <= place && tokens[place - length] === tokens[end - length]) length++
      if (length > longest) {
        best = place
        longest = length
      }
      place = this.#before[place - this.#first] ?? -1
    }
    return best
  }
}

/** What followed `place`, over and over where that reaches the end. */
function continuation(tokens: readonly number[], place: number, count: number): number[] {
  const period = tokens.length - 1 - place
  return Array.from({ length: count }, (_, i) => tokens[place + 1 + (i % period)] ?? 0)
}

function hashAt(tokens: readonly number[], place: number): number {
  const mixed = Math.imul(tokens[place - 1] ?? 0, 0x9e3779b1) ^ Math.imul(tokens[place] ?? 0, 0x85ebca6b)
  return mixed >>> (32 - hashBits)
}
