/** What is measured: a loaded model that computes when asked to and is idle otherwise. */
export type Target = {
  /** Seconds from a prompt of `rows` tokens, never seen before, to the logits (or the token) after its last one. */
  prefill(rows: number): Promise<number>
  /**
   * Seconds that `sequences` sequences of about `context` tokens, decoded together, take for `steps` further tokens
   * each, the first steps not counted.
   */
  decode(sequences: number, context: number, steps: number): Promise<number>
  close(): Promise<void>
}
