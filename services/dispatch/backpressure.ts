import type { ServerWritableStream } from '@grpc/grpc-js'
import { MoeshError } from '../config/errors.ts'
import type { Clock } from './clock.ts'

/** A receiver that reads nothing for so long has gone, or will ask again. */
const stallMs = 30_000

/** Resolves when more can be written or the call is over. Errors: NODE_LATE for a receiver that reads no more. */
export function roomOrEnd(call: ServerWritableStream<Buffer, Buffer>, clock: Clock): Promise<void> {
  // Said once, perhaps before we listen.
  if (call.cancelled) return Promise.resolve()
  return new Promise((resolve, reject) => {
    const events = ['drain', 'cancelled', 'close', 'error'] as const
    const done = () => {
      for (const event of events) call.off(event, done)
      timer.cancel()
      resolve()
    }
    for (const event of events) call.on(event, done)
    const timer = clock.after(stallMs, () => {
      reject(new MoeshError('NODE_LATE', `the receiver has read nothing for ${stallMs} ms`))
      done()
    })
  })
}
