/** Tokens a second, over the last second or longer. */
export class TokenRate {
  readonly #nowMs: () => number
  #sinceMs: number
  #tokens = 0
  #perSecond = 0

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs
    this.#sinceMs = nowMs()
  }

  count(): void {
    this.#tokens += 1
  }

  perSecond(): number {
    const nowMs = this.#nowMs()
    const elapsedMs = nowMs - this.#sinceMs
    if (elapsedMs >= 1000) {
      this.#perSecond = (this.#tokens * 1000) / elapsedMs
      this.#tokens = 0
      this.#sinceMs = nowMs
    }
    return this.#perSecond
  }
}
