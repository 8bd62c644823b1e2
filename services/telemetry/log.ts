import { type DestinationStream, destination, type Level, type Logger as PinoLogger, pino, stdSerializers } from 'pino'
import { build as prettyStream } from 'pino-pretty'

export type Logger = PinoLogger
export type LogOptions = {
  level: Level | 'silent'
  /** undefined: pretty on a terminal. */
  format: 'pretty' | 'json' | undefined
}

/**
 * The process's log, one line an event, to stderr: stdout belongs to results. Written synchronously, so that the last
 * line before a crash is there too; lines are events, not tokens, so it costs little.
 */
export function createLogger(options: LogOptions): Logger {
  const isPretty = (options.format ?? (process.stderr.isTTY ? 'pretty' : 'json')) === 'pretty'
  const stream: DestinationStream = isPretty
    ? prettyStream({ destination: 2, sync: true, ignore: 'pid,hostname', translateTime: 'HH:MM:ss.l' })
    : destination({ dest: 2, sync: true })
  return createLoggerTo(stream, options.level)
}

/** JSON lines to a stream of the caller's. */
export function createLoggerTo(stream: DestinationStream, level: LogOptions['level']): Logger {
  // An Error has no fields of its own to print: without the serializer a line would say {}.
  const serializers = { error: stdSerializers.err }
  return pino({ level, base: null, formatters: { level: (label) => ({ level: label }) }, serializers }, stream)
}
