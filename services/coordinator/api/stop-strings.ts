/**
 * Finds stop strings in text that arrives in pieces, and holds back what may still become one: a client must never see
 * the beginning of a stop string that is then taken away. Of several matches the one that ends first wins, so that the
 * result does not depend on where the pieces were cut; of those that end together, the longest.
 */
export class StopStrings {
  readonly #stops: readonly string[]
  readonly #includesStop: boolean
  #pending = ''
  /** Characters of `#pending` in which a complete stop string no longer counts. */
  #passed = 0

  constructor(stops: readonly string[], includesStop: boolean) {
    this.#stops = stops
    this.#includesStop = includesStop
  }

  /** `mayStop` false: a stop string that is complete by now does not count (there are too few tokens yet). */
  push(piece: string, mayStop: boolean): { text: string; stop: string | null } {
    this.#pending += piece
    if (!mayStop) this.#passed = this.#pending.length
    const match = this.#firstMatch()
    if (match !== null) {
      const text = this.#pending.slice(0, this.#includesStop ? match.end : match.end - match.stop.length)
      this.#pending = ''
      return { text, stop: match.stop }
    }
    const text = this.#pending.slice(0, this.#pending.length - this.#heldBack())
    this.#pending = this.#pending.slice(text.length)
    this.#passed = Math.max(0, this.#passed - text.length)
    return { text, stop: null }
  }

  /** What was held back, once nothing follows. */
  flush(): string {
    const text = this.#pending
    this.#pending = ''
    return text
  }

  #firstMatch(): { stop: string; end: number } | null {
    let best: { stop: string; end: number } | null = null
    for (const stop of this.#stops) {
      const start = this.#pending.indexOf(stop, Math.max(0, this.#passed - stop.length + 1))
      if (start < 0) continue
      const end = start + stop.length
      if (best === null || end < best.end || (end === best.end && stop.length > best.stop.length)) best = { stop, end }
    }
    return best
  }

  /** Length of the longest end of the text that a stop string begins with. */
  #heldBack(): number {
    let held = 0
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, this.#pending.length); length > held; length--) {
        if (this.#pending.endsWith(stop.slice(0, length))) held = length
      }
    }
    return held
  }
}
