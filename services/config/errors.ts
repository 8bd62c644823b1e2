import type { status } from '@grpc/grpc-js'

/**
 * Every error that may happen, with what a client sees of it. A code is stable; its message says what is wrong, where,
 * and what to do about it.
 */
export const errorCodes = {
  INVALID_ARGUMENT: { grpc: 'INVALID_ARGUMENT', retry: false },
  USAGE: { grpc: 'INVALID_ARGUMENT', retry: false },
  CHECKPOINT_INVALID: { grpc: 'FAILED_PRECONDITION', retry: false },
  MODEL_UNSUPPORTED: { grpc: 'FAILED_PRECONDITION', retry: false },
  KV_ERA: { grpc: 'FAILED_PRECONDITION', retry: false },
  MODEL_UNKNOWN: { grpc: 'NOT_FOUND', retry: false },
  MODEL_AMBIGUOUS: { grpc: 'FAILED_PRECONDITION', retry: false },
  PACK_INVALID: { grpc: 'FAILED_PRECONDITION', retry: false },
  PACK_DIGEST: { grpc: 'DATA_LOSS', retry: false },
  PROVIDER_UNAVAILABLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  REQUEST_UNKNOWN: { grpc: 'NOT_FOUND', retry: false },
  REQUEST_EXISTS: { grpc: 'ALREADY_EXISTS', retry: false },
  /** Its journal is there, but what it was computed with is not. */
  RESUME_IMPOSSIBLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  QUEUE_FULL: { grpc: 'RESOURCE_EXHAUSTED', retry: true },
  /** The client does not read what was generated for it. */
  CLIENT_SLOW: { grpc: 'RESOURCE_EXHAUSTED', retry: true },
  SHUTTING_DOWN: { grpc: 'UNAVAILABLE', retry: true },
  CANCELLED: { grpc: 'CANCELLED', retry: false },
  /** Of the command line: the server said no, or nobody answers. */
  SERVER_REFUSED: { grpc: 'FAILED_PRECONDITION', retry: false },
  SERVER_UNREACHABLE: { grpc: 'UNAVAILABLE', retry: true },
  NODE_UNKNOWN: { grpc: 'NOT_FOUND', retry: false },
  NODE_ID_TAKEN: { grpc: 'ALREADY_EXISTS', retry: false },
  NODE_INCOMPATIBLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  EXPERT_NOT_HELD: { grpc: 'FAILED_PRECONDITION', retry: true },
  NODE_LATE: { grpc: 'UNAVAILABLE', retry: true },
  NODE_LOST: { grpc: 'UNAVAILABLE', retry: true },
  MEMORY_EXHAUSTED: { grpc: 'RESOURCE_EXHAUSTED', retry: true },
  STORE_UNREACHABLE: { grpc: 'UNAVAILABLE', retry: true },
  NO_OTHER_NODE: { grpc: 'FAILED_PRECONDITION', retry: false },
  DRAIN_STALLED: { grpc: 'DEADLINE_EXCEEDED', retry: true },
  NOT_LEADER: { grpc: 'FAILED_PRECONDITION', retry: true },
  FILE_UNREADABLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  FILE_UNWRITABLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  ADDRESS_UNAVAILABLE: { grpc: 'FAILED_PRECONDITION', retry: false },
  KUBERNETES_UNREACHABLE: { grpc: 'UNAVAILABLE', retry: true },
  TLS_INVALID: { grpc: 'FAILED_PRECONDITION', retry: false },
  UNAUTHENTICATED: { grpc: 'UNAUTHENTICATED', retry: false },
  ROLE_DENIED: { grpc: 'PERMISSION_DENIED', retry: false },
  STARTING: { grpc: 'UNAVAILABLE', retry: true },
  INTERNAL: { grpc: 'INTERNAL', retry: false },
} as const satisfies Record<string, { grpc: keyof typeof status; retry: boolean }>

export type ErrorCode = keyof typeof errorCodes

/** The one error class: `code` decides the gRPC status and whether a retry makes sense, `hint` says what to do. */
export class MoeshError extends Error {
  readonly code: ErrorCode
  readonly hint: string

  constructor(code: ErrorCode, message: string, hint = '', options: { cause?: unknown } = {}) {
    super(hint === '' ? message : `${message}; ${hint}`, options)
    this.name = 'MoeshError'
    this.code = code
    this.hint = hint
  }
}

/** What was thrown, as a `MoeshError`: anything that is not one is a defect of ours. */
export function asMoeshError(thrown: unknown): MoeshError {
  if (thrown instanceof MoeshError) return thrown
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  return new MoeshError('INTERNAL', message, '', { cause: thrown })
}

/** For the `default` of a `switch` over a union: the compiler names the member that is missing. */
export function unreachable(value: never): never {
  throw new MoeshError('INTERNAL', `unreachable value ${String(value)}`)
}
