import { readCpuList } from './cpu-list.ts'
import { MoeshError } from './errors.ts'

/** How the text of a flag becomes a value; what is not allowed is said in `allowed`. */
export type ValueKind<T> = {
  /** In help: `--ranks N`. */
  placeholder: string
  /** Completes "it must be …". */
  allowed: string
  /** undefined: not allowed. */
  read(text: string): T | undefined
}

export const text: ValueKind<string> = {
  placeholder: 'TEXT',
  allowed: 'a text that is not empty',
  read: (value) => (value === '' ? undefined : value),
}

export const path = (placeholder: string): ValueKind<string> => ({ ...text, placeholder, allowed: 'a path' })

/** For names that end up in keys, labels and file names. */
export const name: ValueKind<string> = {
  placeholder: 'NAME',
  allowed: 'of letters, digits, ".", "_", "-" and "/", at most 128',
  read: (value) => (/^[A-Za-z0-9._/:-]{1,128}$/.test(value) ? value : undefined),
}

export function count(low: number, high: number): ValueKind<number> {
  return {
    placeholder: 'N',
    allowed: `a whole number from ${low} to ${high}`,
    read: (value) => (/^-?\d{1,15}$/.test(value) ? within(Number(value), low, high) : undefined),
  }
}

/** Several of `count`, separated by commas. */
export function counts(low: number, high: number, most: number): ValueKind<number[]> {
  const one = count(low, high)
  return {
    placeholder: 'N,N,…',
    allowed: `at most ${most} whole numbers from ${low} to ${high}, such as 1,2,4`,
    read: (value) => {
      const numbers = value.split(',').map((part) => one.read(part.trim()))
      const known = numbers.filter((number) => number !== undefined)
      return known.length === numbers.length && known.length <= most ? known : undefined
    },
  }
}

/** CPUs, or `any`. */
export const cpuChoice: ValueKind<readonly number[] | 'any'> = {
  placeholder: 'LIST|any',
  allowed: 'a list such as 0-3,8, or any',
  read: (value) => (value === 'any' ? value : readCpuList(value)),
}

export function real(placeholder: string, low: number, high: number): ValueKind<number> {
  return {
    placeholder,
    allowed: `a number from ${low} to ${high}`,
    read: (value) => (/^-?\d+(\.\d+)?$/.test(value) ? within(Number(value), low, high) : undefined),
  }
}

export const unsigned64: ValueKind<bigint> = {
  placeholder: 'N',
  allowed: 'a whole number from 0 to 18446744073709551615',
  read: (value) => {
    if (!/^\d{1,20}$/.test(value)) return undefined
    const number = BigInt(value)
    return number < 1n << 64n ? number : undefined
  },
}

export function choice<const T extends string>(...values: readonly T[]): ValueKind<T> {
  return {
    placeholder: values.join('|'),
    allowed: `one of ${values.join(', ')}`,
    read: (value) => values.find((candidate) => candidate === value),
  }
}

const units: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
}

/** Bytes. */
export const size: ValueKind<number> = {
  placeholder: 'SIZE',
  allowed: 'a size such as 512MiB, 8GiB or 1.5GB',
  read: (value) => {
    const [, number, unit] = /^(\d+(?:\.\d+)?) ?((?:[KMGT]i?)?B|)$/.exec(value) ?? []
    const factor = units[unit ?? '']
    if (number === undefined || factor === undefined) return undefined
    const bytes = Math.floor(Number(number) * factor)
    return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : undefined
  },
}

/** HOST:PORT; an IPv6 host stands in brackets. */
export function address(lowestPort: 0 | 1): ValueKind<string> {
  return {
    placeholder: 'HOST:PORT',
    allowed: `HOST:PORT with a port from ${lowestPort} to 65535, such as 127.0.0.1:50051 or [::1]:50051`,
    read: (value) => {
      const [, port] = /^(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$/.exec(value) ?? []
      if (port === undefined) return undefined
      return within(Number(port), lowestPort, 65_535) === undefined ? undefined : value
    },
  }
}

const storeProtocols = ['memory:', 'redis:', 'rediss:']

export const storeUrl: ValueKind<string> = {
  placeholder: 'URL',
  allowed: 'memory:, redis://HOST:PORT or rediss://HOST:PORT',
  read: (value) => {
    if (value === 'memory:') return value
    const url = URL.parse(value)
    return url !== null && url.hostname !== '' && storeProtocols.includes(url.protocol) ? value : undefined
  },
}

/** Errors: USAGE, naming where the text came from (`--ranks`, `MOESH_RANKS`). */
export function readValue<T>(kind: ValueKind<T>, from: string, value: string): T {
  const result = kind.read(value)
  if (result !== undefined) return result
  // A URL may carry a password, which has no place in an error or a log.
  const shown = value.includes('@') ? value.replace(/\/\/[^@]*@/, '//***@') : value
  throw new MoeshError('USAGE', `${from}: "${shown}" is not allowed; it must be ${kind.allowed}`)
}

function within(value: number, low: number, high: number): number | undefined {
  return value >= low && value <= high ? value : undefined
}
