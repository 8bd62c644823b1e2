import { setTimeout as sleep } from 'node:timers/promises'
import type { TestCluster } from '../support/cluster.ts'
import { emptyResult, runStream, type StreamRequest, type StreamResult } from '../support/streams.ts'

/** Requests of all kinds: short and long prompts, greedy and drawn. */
export const requests: readonly StreamRequest[] = Array.from({ length: 8 }, (_, index) => ({
  promptIds: Array.from({ length: 1 + index * 9 }, (_, at) => 5 + ((at * 37 + index * 11) % 250)),
  maxTokens: 100 + 40 * (index % 5),
  temperature: index % 2,
  seed: index,
}))

/** What each request's tokens must be: an undisturbed run's. */
export async function undisturbed(cluster: TestCluster): Promise<string[]> {
  const [coordinator] = cluster.coordinators
  if (!coordinator) throw new Error('there is no coordinator')
  const results = await Promise.all(requests.map((request) => runStream(cluster, coordinator, request)))
  return results.map((result) => {
    if (result.error !== null) throw new Error(result.error)
    return bits(result)
  })
}

export type Failure = { request: number; what: string }

/** So many streams at all times; each that ends is compared, and the next begins. */
export class Load {
  /** All that ran since `forget`. */
  readonly streams = new Set<StreamResult>()
  readonly failures: Failure[] = []
  ended = 0
  readonly #cluster: TestCluster
  readonly #expected: readonly string[]
  readonly #loops: Promise<void>[]
  #isRunning = true
  #next = 0

  constructor(cluster: TestCluster, expected: readonly string[], streams: number) {
    this.#cluster = cluster
    this.#expected = expected
    this.#loops = Array.from({ length: streams }, (_, slot) => this.#loop(slot))
  }

  /** Streams that have ended are measured no more. */
  forget(): void {
    for (const stream of this.streams) if (stream.endedMs !== null) this.streams.delete(stream)
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    await Promise.all(this.#loops)
  }

  async #loop(slot: number): Promise<void> {
    while (this.#isRunning) {
      const alive = this.#cluster.coordinators.filter(({ isServing }) => isServing)
      const coordinator = alive[slot % Math.max(1, alive.length)]
      if (!coordinator) {
        await sleep(20)
        continue
      }
      const index = this.#next++ % requests.length
      const request = requests[index]
      if (!request) throw new Error('no request')
      const result = emptyResult()
      this.streams.add(result)
      await runStream(this.#cluster, coordinator, request, result)
      this.ended++
      if (result.error !== null) this.failures.push({ request: index, what: result.error })
      else if (bits(result) !== this.#expected[index]) this.failures.push({ request: index, what: 'other tokens' })
    }
  }
}

function bits({ tokens }: StreamResult): string {
  return tokens.map(({ id, logprob }) => `${id}:${logprob}`).join(' ')
}
