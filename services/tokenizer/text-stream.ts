/** Turns tokens to text as they come. `push` returns the text that became certain: never a part of a character. */
export type TextStream = {
  push(id: number): string
  /** The end: what is left of an unfinished character becomes U+FFFD. */
  flush(): string
}

export type TextStreamOptions = {
  /** Leave out special tokens. */
  skipSpecial: boolean
  /** The first token begins a text, and is not the continuation of one: its added space is no part of it. */
  isStart?: boolean
}

export type TokenSource = {
  /** null: no such token. */
  tokenBytes(id: number): Uint8Array | null
  isSpecial(id: number): boolean
  readonly stripsFirstSpace: boolean
}

/**
 * Bytes of tokens run through a streaming UTF-8 decoder, which keeps the beginning of a character until the rest
 * arrives: the cost of a token is its own length, however long the text is. Bytes that are no UTF-8 become U+FFFD.
 */
export function createTextStream(tokens: TokenSource, { skipSpecial, isStart = false }: TextStreamOptions): TextStream {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  let stripNext = isStart && tokens.stripsFirstSpace
  const strip = (text: string) => {
    if (!stripNext || text === '') return text
    stripNext = false
    return text.startsWith(' ') ? text.slice(1) : text
  }
  return {
    push(id) {
      if (skipSpecial && tokens.isSpecial(id)) return ''
      const bytes = tokens.tokenBytes(id)
      return bytes === null ? '' : strip(decoder.decode(bytes, { stream: true }))
    },
    flush: () => strip(decoder.decode()),
  }
}
