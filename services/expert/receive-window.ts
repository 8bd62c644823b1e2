import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { ServerHttp2Session } from 'node:http2'

/**
 * Node's servers announce windows of 64 KiB, so that each further 64 KiB of a message wait for a round trip; grpc-js has
 * no option for it on servers. This widens the connections that carry dispatch streams, from the first stream on.
 */
const channel = 'http2.server.stream.created'
const windowBytes = 16 * 1024 * 1024

let users = 0
const widened = new WeakSet<ServerHttp2Session>()

type StreamCreated = { stream: { session?: ServerHttp2Session }; headers: { ':path'?: string } }

function widen(message: unknown): void {
  const { stream, headers } = message as StreamCreated
  if (!headers[':path']?.startsWith('/moesh.internal.v1.ExpertService/')) return
  const { session } = stream
  if (!session || session.destroyed || widened.has(session)) return
  widened.add(session)
  session.setLocalWindowSize(windowBytes)
  session.settings({ initialWindowSize: windowBytes })
}

/** Until the returned function is called. */
export function widenDispatchWindows(): () => void {
  if (users++ === 0) subscribe(channel, widen)
  let isOpen = true
  return () => {
    if (!isOpen) return
    isOpen = false
    if (--users === 0) unsubscribe(channel, widen)
  }
}
