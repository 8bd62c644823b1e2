/**
 * Where in a text each token starts, in UTF-8 bytes. Tokens' bytes are mostly the text's own; where the tokenizer
 * normalised it (composed accents, a space in front, stripped spaces), both are walked along character by character.
 */
export function byteOffsets(text: string, tokens: readonly Uint8Array[]): number[] {
  const original = Buffer.from(text, 'utf8')
  const written = Buffer.concat(tokens)
  const starts: number[] = []
  let at = 0
  for (const bytes of tokens) {
    starts.push(at)
    at += bytes.length
  }
  if (written.equals(original)) return starts
  const places = align(text, written)
  return starts.map((start) => places[start] ?? original.length)
}

/** For each byte that the tokens hold, the byte of the text that it comes from; monotone. */
function align(text: string, written: Buffer): Uint32Array {
  const places = new Uint32Array(written.length)
  let at = 0
  let place = 0
  for (const { segment } of new Intl.Segmenter('und', { granularity: 'grapheme' }).segment(text)) {
    const bytes = Buffer.byteLength(segment)
    const forms = [
      segment,
      segment.normalize('NFC'),
      segment.normalize('NFKC'),
      segment.normalize('NFD'),
      segment.normalize('NFKD'),
    ]
    let form = matching(forms, written, at)
    // A space that the tokenizer put in front belongs to what follows it.
    if (form === 0 && written[at] === 0x20) {
      places[at] = place
      at += 1
      form = matching(forms, written, at)
    }
    // A space that the tokenizer took out has no token; anything else is taken to be as long as it was.
    if (form === 0 && segment.trim() !== '') form = Math.min(bytes, written.length - at)
    if (form === bytes) for (let i = 0; i < form; i++) places[at + i] = place + i
    else places.fill(place, at, at + form)
    at += form
    place += bytes
  }
  places.fill(place, at)
  return places
}

/** Bytes of the first form that stands there, or 0. */
function matching(forms: readonly string[], written: Buffer, at: number): number {
  for (const form of forms) {
    const bytes = Buffer.from(form, 'utf8')
    if (bytes.length > 0 && written.subarray(at, at + bytes.length).equals(bytes)) return bytes.length
  }
  return 0
}
