import { parentPort, workerData } from 'node:worker_threads'
import { z } from 'zod'
import { bindThisThread } from '../services/runtime/cpus.ts'

/** Reads its buffer over and over for a moment when told to, and answers with a `Reading`. */

const cpu = z.number().nullable().parse(workerData)
if (cpu !== null) bindThisThread(cpu)

const pageBytes = 65536
const bufferBytes = 256 * 1024 * 1024
const readMs = 300

/**
 * `sum(begin, end)`: adds up all 64-bit lanes of a range, 128 bytes an iteration. WebAssembly, since its vector loads
 * read as fast as the memory delivers, which plain JavaScript does not.
 */
function assemble(): Uint8Array<ArrayBuffer> {
  const [i32, i64, v128] = [0x7f, 0x7e, 0x7b]
  const accumulators = 4
  const loads = 8
  const [begin, end] = [0, 1]
  const accumulator = (index: number) => 2 + (index % accumulators)
  const body: number[] = [0x03, 0x40] // loop
  for (let load = 0; load < loads; load++) {
    const to = accumulator(load)
    // accumulator += v128.load(begin + 16 * load)
    body.push(0x20, to, 0x20, begin, 0xfd, 0x00, 0x04, 16 * load, 0xfd, 0xce, 0x01, 0x21, to)
  }
  // begin += 128; repeat while begin < end
  body.push(0x20, begin, 0x41, 0x80, 0x01, 0x6a, 0x22, begin, 0x20, end, 0x49, 0x0d, 0x00, 0x0b)
  for (let index = 1; index < accumulators; index++) {
    body.push(0x20, accumulator(0), 0x20, accumulator(index), 0xfd, 0xce, 0x01, 0x21, accumulator(0))
  }
  // The sum of both lanes.
  body.push(0x20, accumulator(0), 0xfd, 0x1d, 0, 0x20, accumulator(0), 0xfd, 0x1d, 1, 0x7c, 0x0b)
  const locals = [1, accumulators, v128]
  const code = [...unsigned(locals.length + body.length), ...locals, ...body]
  const section = (id: number, content: readonly number[]) => [id, ...unsigned(content.length), ...content]
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, [1, 0x60, 2, i32, i32, 1, i64]),
    ...section(3, [1, 0]),
    ...section(5, [1, 0x00, ...unsigned(bufferBytes / pageBytes)]),
    ...section(7, [2, 3, ...Buffer.from('sum'), 0x00, 0, 6, ...Buffer.from('memory'), 0x02, 0]),
    ...section(10, [1, ...code]),
  ])
}

function unsigned(value: number): number[] {
  return value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)]
}

const callable = <F>() => z.custom<F>((value) => typeof value === 'function')
// The language's own declarations have no WebAssembly; those that have it describe browsers.
const instantiate = callable<(bytes: Uint8Array) => Promise<{ instance: { exports: object } }>>()
const exportsSchema = z.object({
  memory: z.object({ buffer: z.instanceof(ArrayBuffer) }),
  sum: callable<(begin: number, end: number) => bigint>(),
})
const webAssembly = Object(Reflect.get(globalThis, 'WebAssembly'))
const { instance } = await instantiate.parse(webAssembly.instantiate)(assemble())
const { memory, sum } = exportsSchema.parse({ ...instance.exports })
// Pages that were never written are all the same one.
new Uint8Array(memory.buffer).fill(1)

parentPort?.on('message', () => {
  const fromMs = now()
  let passes = 0
  let toMs = fromMs
  do {
    sum(0, bufferBytes)
    passes++
    toMs = now()
  } while (toMs - fromMs < readMs)
  parentPort?.postMessage({ bytes: passes * bufferBytes, fromMs, toMs })
})
parentPort?.postMessage('ready')

/** The same clock for all threads. */
function now(): number {
  return performance.timeOrigin + performance.now()
}
