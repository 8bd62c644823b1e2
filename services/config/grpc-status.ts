import { status } from '@grpc/grpc-js'
import { type ErrorCode, errorCodes } from './errors.ts'

/** The gRPC status that a client sees of an error. Beside `errors.ts`, which computing threads load without all of gRPC. */
export function grpcStatus(code: ErrorCode): status {
  return status[errorCodes[code].grpc]
}
