import { MoeshError } from '../../services/config/errors.ts'
import type { Cancellation } from '../../services/dispatch/cancellation.ts'
import type { ExpertCall, ExpertReply, ExpertTransport } from '../../services/dispatch/transport.ts'
import { compute } from './experts.ts'

type Open = {
  node: FakeNode
  call: ExpertCall
  answer: () => void
  fail: (error: MoeshError) => void
}

/** What a node does with a call: nothing until the test says so, or at once. */
type Behaviour = 'hold' | 'answer' | 'wrong' | 'lost' | 'refuse'

/** A node whose every answer is decided by the test. */
export class FakeNode implements ExpertTransport {
  readonly nodeId: string
  behaviour: Behaviour = 'answer'
  /** Experts that it refuses. */
  readonly missing = new Set<number>()
  readonly calls: ExpertCall[] = []
  readonly open: Open[] = []

  constructor(nodeId: string) {
    this.nodeId = nodeId
  }

  call(call: ExpertCall, cancellation?: Cancellation): Promise<ExpertReply> {
    this.calls.push(call)
    const { promise, resolve, reject } = Promise.withResolvers<ExpertReply>()
    let isOpen = true
    const close = () => {
      isOpen = false
      const index = this.open.indexOf(entry)
      if (index >= 0) this.open.splice(index, 1)
    }
    const entry: Open = {
      node: this,
      call,
      answer: () => {
        if (!isOpen) return
        close()
        if (call.experts.some((expert) => this.missing.has(expert))) {
          reject(new MoeshError('EXPERT_NOT_HELD', 'not held here'))
          return
        }
        compute(call, this.behaviour === 'wrong' ? 1 : 0)
        resolve({ computeMs: 1 })
      },
      fail: (error) => {
        if (!isOpen) return
        close()
        reject(error)
      },
    }
    this.open.push(entry)
    cancellation?.listen(() => entry.fail(new MoeshError('CANCELLED', 'given up')))
    if (cancellation?.isCancelled) entry.fail(new MoeshError('CANCELLED', 'given up'))
    if (this.behaviour === 'answer' || this.behaviour === 'wrong') entry.answer()
    if (this.behaviour === 'lost') entry.fail(new MoeshError('NODE_LOST', 'gone'))
    if (this.behaviour === 'refuse') entry.fail(new MoeshError('EXPERT_NOT_HELD', 'not held here'))
    return promise
  }

  answerAll(): void {
    for (const entry of [...this.open]) entry.answer()
  }

  async close(): Promise<void> {
    for (const entry of [...this.open]) entry.fail(new MoeshError('NODE_LOST', 'closed'))
  }
}
