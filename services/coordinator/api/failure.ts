import { Metadata, type ServiceError, type sendUnaryData } from '@grpc/grpc-js'
import { asMoeshError } from '../../config/errors.ts'
import { grpcStatus } from '../../config/grpc-status.ts'
import { retryAfterMs } from '../../config/limits.ts'

/** What was thrown, as the status that a client gets; the trailer says when to come again where waiting helps. */
export function toServiceError(thrown: unknown): ServiceError {
  const error = asMoeshError(thrown)
  const metadata = new Metadata()
  metadata.set('moesh-code', error.code)
  if (error.code === 'QUEUE_FULL') metadata.set('retry-after-ms', String(retryAfterMs))
  return Object.assign(new Error(error.message), {
    code: grpcStatus(error.code),
    details: error.message,
    metadata,
  })
}

/** Defects of ours are what somebody has to look at; all else the client has been told. */
export type ReportDefect = (error: Error, method: string) => void

/** A unary handler from a function that returns the response or throws. */
export function unary(
  method: string,
  report: ReportDefect,
  answer: (request: unknown) => Promise<object> | object,
): (call: { request: unknown }, callback: sendUnaryData<object>) => void {
  return (call, callback) => {
    Promise.resolve()
      .then(() => answer(call.request))
      .then(
        (response) => callback(null, response),
        (thrown: unknown) => {
          const error = asMoeshError(thrown)
          if (error.code === 'INTERNAL') report(error, method)
          callback(toServiceError(error))
        },
      )
  }
}
