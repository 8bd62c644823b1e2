import assert from 'node:assert/strict'
import { join } from 'node:path'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { openPack } from '../../pack/reader.ts'
import { announce, Barrier, BarrierBroken, waitForChange } from '../../runtime/signal.ts'
import type { Item } from './attention.ts'
import { Forward, type ForwardSetup } from './forward.ts'
import { HeadOutput } from './head-output.ts'
import { commands, controlWords, headWords, itemWords } from './layout.ts'
import { OwnExperts } from './own-experts.ts'
import type { FromThread, ThreadSetup, ToThread } from './team-protocol.ts'

/** A thread of a coordinator's team: sleeps until a command comes, computes its share, and says so. */

const setup = workerData as ThreadSetup
const { spec, format, packDir, thread, limits, buffers } = setup
const { control } = buffers
const { threads } = limits
assert(parentPort !== null)
const port = parentPort
const say = (message: FromThread) => port.postMessage(message)

const pack = openPack(packDir)
const embedding = pack.tensor('embed')
const barrier = new Barrier(control, controlWords.barrier, threads)
const share: Omit<ForwardSetup, 'experts'> = {
  spec,
  format,
  source: {
    locate: (name) => {
      const { file, offset } = pack.tensor(name)
      return { path: join(packDir, file), offset }
    },
    readTensor: (name) => pack.readTensor(name),
  },
  embedding: { path: join(packDir, embedding.file), offset: embedding.offset, dtype: embedding.dtype },
  thread,
  threads,
  session: { stageDir: setup.stageDir, provider: 'cpu', avoidSaturation: setup.avoidSaturation },
  buffers,
  barrier,
}
const experts = setup.shards && new OwnExperts(share, setup.shards)
const forward = new Forward({ ...share, experts })
const output = new HeadOutput(spec.vocabulary, limits.topMax, buffers)

function readItems(): Item[] {
  const { items } = buffers
  return Array.from({ length: Atomics.load(control, controlWords.items) }, (_, index) => {
    const at = index * itemWords.size
    return {
      slot: items[at + itemWords.slot] ?? 0,
      start: items[at + itemWords.start] ?? 0,
      count: items[at + itemWords.count] ?? 0,
      row: items[at + itemWords.row] ?? 0,
    }
  })
}

let items: Item[] = []

function run(): void {
  const from = Atomics.load(control, controlWords.argument)
  const rows = Atomics.load(control, controlWords.rows)
  if (from === 0) {
    items = readItems()
    output.beginStep(items)
  }
  const stoppedAt = forward.run(from, rows, items, Atomics.load(control, controlWords.pauses) !== 0)
  if (thread === 0) Atomics.store(control, controlWords.stoppedAt, stoppedAt)
}

/** Columns of all rows, then whole rows: each thread draws from every `threads`-th row. */
function head(): void {
  const rows = Atomics.load(control, controlWords.headRows)
  forward.head(rows, (index) => buffers.head[index * headWords.size + headWords.row] ?? 0)
  for (let index = thread; index < rows; index += threads) output.write(index)
  forward.lapSampling()
}

function hear(message: ToThread): void {
  switch (message.kind) {
    case 'begin':
      // A slot that was freed in the middle of a step was filled again by the rest of the step.
      forward.cache.free(message.slot)
      output.begin(message.slot, message.candidate, message.promptTokens, message.sampling)
      return
    case 'copy':
      forward.cache.copy(message.from, message.slot)
      output.copy(message.from, message.slot)
      return
    case 'free':
      forward.cache.free(message.slot)
      output.free(message.slot)
  }
}

function execute(command: number): void {
  try {
    for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) hear(next.message as ToThread)
    if (command === commands.run) run()
    else if (command === commands.head) head()
  } catch (thrown) {
    if (!(thrown instanceof BarrierBroken)) {
      say({ kind: 'failed', message: thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown) })
      Atomics.store(control, controlWords.failed, 1)
      barrier.break()
    }
  }
  if (Atomics.add(control, controlWords.finished, 1) + 1 === threads) announce(control, controlWords.done)
}

say({ kind: 'ready' })
let seen = 0
for (;;) {
  seen = waitForChange(control, controlWords.go, seen)
  const command = Atomics.load(control, controlWords.command)
  if (command === commands.close) break
  execute(command)
}
forward.close()
port.close()
