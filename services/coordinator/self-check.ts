import { isDeepStrictEqual } from 'node:util'
import type { RouteTable } from '../dispatch/route.ts'

/** What must agree when nothing runs. */
export type IdleFacts = {
  /** Requests that run or wait. */
  requests: number
  /** Layers' rows on their way to experts. */
  dispatches: number
  kvTokensUsed: number
  /** As the dispatcher uses them, and as membership and placement ask for. */
  routes: RouteTable
  expectedRoutes: RouteTable
  /** Expert nodes of the cluster to which there is no link. */
  unlinked: readonly string[]
}

export type Mismatch = { what: 'dispatches' | 'kv' | 'routes' | 'links'; text: string }

/** Compares what different parts believe; empty while requests run, and where all agree. */
export function findMismatches(facts: IdleFacts): Mismatch[] {
  if (facts.requests > 0) return []
  const found: Mismatch[] = []
  if (facts.dispatches > 0) {
    found.push({ what: 'dispatches', text: `${facts.dispatches} dispatches are under way, of no request` })
  }
  if (facts.kvTokensUsed > 0) {
    found.push({ what: 'kv', text: `${facts.kvTokensUsed} tokens are kept in the KV cache, of no request` })
  }
  if (!isDeepStrictEqual(facts.routes, facts.expectedRoutes)) {
    found.push({ what: 'routes', text: 'rows are not routed as nodes and placement say' })
  }
  if (facts.unlinked.length > 0) {
    found.push({ what: 'links', text: `there is no link to ${facts.unlinked.join(', ')}` })
  }
  return found
}

/** A mismatch counts when it was there at the look before too: a look may fall into a change. */
export class SelfCheck {
  #before = new Set<string>()

  look(facts: IdleFacts): Mismatch[] {
    const found = findMismatches(facts)
    const lasting = found.filter(({ what }) => this.#before.has(what))
    this.#before = new Set(found.map(({ what }) => what))
    return lasting
  }
}
