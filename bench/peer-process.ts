import { z } from 'zod'
import { LlamaTarget } from './peer-llama.ts'

/**
 * The peer in a process of its own, so that neither side's threads, memory or event loop are in the other's way:
 * `peer-process.ts FILE VOCABULARY THREADS`, then a request at a time by IPC, each answered with its seconds.
 */

const count = z.int().positive()
export const peerRequest = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('prefill'), rows: count }),
  z.object({ kind: z.literal('decode'), sequences: count, context: count, steps: count }),
])
export type PeerRequest = z.infer<typeof peerRequest>
export const peerAnswer = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('ready') }),
  z.object({ kind: z.literal('seconds'), seconds: z.number().positive() }),
  z.object({ kind: z.literal('failed'), message: z.string() }),
])
export type PeerAnswer = z.infer<typeof peerAnswer>

function answer(message: PeerAnswer): void {
  process.send?.(message)
}

async function perform(target: LlamaTarget, request: PeerRequest): Promise<number> {
  switch (request.kind) {
    case 'prefill':
      return target.prefill(request.rows)
    case 'decode':
      return target.decode(request.sequences, request.context, request.steps)
  }
}

async function main([path = '', vocabulary, threads]: readonly string[]): Promise<void> {
  const target = await LlamaTarget.open(path, count.parse(Number(vocabulary)), count.parse(Number(threads)))
  process.on('message', (message) => {
    perform(target, peerRequest.parse(message)).then(
      (seconds) => answer({ kind: 'seconds', seconds }),
      (error) => answer({ kind: 'failed', message: String(error) }),
    )
  })
  answer({ kind: 'ready' })
}

if (import.meta.main) {
  // Whoever started it is gone: nobody wants an answer any more.
  process.on('disconnect', () => process.exit(0))
  await main(process.argv.slice(2)).catch((error) => {
    answer({ kind: 'failed', message: String(error) })
    process.exitCode = 1
  })
}
