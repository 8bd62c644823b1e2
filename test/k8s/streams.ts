import assert from 'node:assert/strict'
import type { MoeshClient, Prompt } from './client.ts'

export type StreamReport = {
  readonly finished: number
  readonly resumes: number
  readonly gapMsMax: number
}

/**
 * Keeps streams running, each prompt over and over, while something is done to the cluster. Every stream must end with
 * exactly the tokens of the reference, and none may fail.
 */
export class RunningStreams {
  readonly #stop = new AbortController()
  readonly #workers: Promise<void>[]
  readonly #failures: string[] = []
  #finished = 0
  #resumes = 0
  #gapMsMax = 0

  constructor(
    client: MoeshClient,
    prompts: readonly Prompt[],
    reference: readonly (readonly number[])[],
    name: string,
  ) {
    this.#workers = prompts.map((prompt, index) =>
      this.#work(client, prompt, reference[index] ?? [], `${name}-${index}`),
    )
  }

  /** Lets every stream that has begun come to its end. */
  async finish(): Promise<StreamReport> {
    this.#stop.abort()
    await Promise.all(this.#workers)
    assert.deepEqual(this.#failures, [])
    assert.ok(this.#finished >= this.#workers.length)
    return { finished: this.#finished, resumes: this.#resumes, gapMsMax: Math.round(this.#gapMsMax) }
  }

  async #work(client: MoeshClient, prompt: Prompt, reference: readonly number[], name: string): Promise<void> {
    for (let round = 0; round === 0 || !this.#stop.signal.aborted; round++) {
      try {
        const { tokens, resumes, gapMsMax } = await client.generate(prompt, `${name}-${round}`)
        assert.deepEqual(tokens, reference, `stream ${name}-${round} has other tokens`)
        this.#finished += 1
        this.#resumes += resumes
        this.#gapMsMax = Math.max(this.#gapMsMax, gapMsMax)
      } catch (thrown) {
        this.#failures.push(`${name}-${round}: ${thrown instanceof Error ? thrown.message : String(thrown)}`)
        return
      }
    }
  }
}
