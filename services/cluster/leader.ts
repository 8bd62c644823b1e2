import { asMoeshError } from '../config/errors.ts'
import type { Clock } from './clock.ts'
import type { Store } from './store.ts'

export type ElectionOptions = {
  store: Store
  self: { id: string; incarnation: string }
  clock: Clock
  leaseMs: number
  /** Called when the own leadership begins (with its token) or ends (null). */
  onChange: (token: number | null) => void
}

export interface Election {
  start(): void
  /** Fencing token of the own leadership; null while another leads, or nobody known. */
  token(): number | null
  /** Gives the leadership away at once. */
  stop(): Promise<void>
}

/**
 * Coordinators compete for one lease in the store. A leader that cannot renew it stops to lead by its own clock before
 * the store would let another one begin; should it be wrong about that (stopped, or with a slow clock), its writes are
 * refused by their token.
 */
export function createElection({ store, self, clock, leaseMs, onChange }: ElectionOptions): Election {
  let token: number | null = null
  let isStopped = false
  let timer: { cancel(): void } | null = null
  let expiry: { cancel(): void } | null = null
  let underWay: Promise<void> | null = null

  function become(next: number | null): void {
    if (next === token) return
    token = next
    onChange(next)
  }

  async function compete(): Promise<void> {
    const askedMs = clock.nowMs()
    try {
      const leader = await store.lead(self.id, self.incarnation, leaseMs)
      const isOwn = leader.id === self.id && leader.incarnation === self.incarnation
      if (isOwn && !isStopped) holdUntil(askedMs + 0.9 * leaseMs)
      become(isOwn && !isStopped && clock.nowMs() < askedMs + 0.9 * leaseMs ? leader.token : null)
    } catch (thrown) {
      // The store is away: what was promised before still holds until its end.
      asMoeshError(thrown)
    }
    if (!isStopped) again(leaseMs / 3)
  }

  function holdUntil(endMs: number): void {
    expiry?.cancel()
    expiry = clock.after(Math.max(0, endMs - clock.nowMs()), () => become(null))
  }

  function again(delayMs: number): void {
    timer = clock.after(delayMs, () => {
      underWay = compete()
    })
  }

  return {
    start() {
      underWay = compete()
    },
    token: () => token,
    async stop() {
      isStopped = true
      timer?.cancel()
      expiry?.cancel()
      await underWay
      timer?.cancel()
      become(null)
      await store.resign(self.id, self.incarnation).catch(asMoeshError)
    },
  }
}
