import assert from 'node:assert/strict'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { MoeshError } from '../../config/errors.ts'
import { PackTensors } from '../../pack/tensors.ts'
import { bindThisThread } from '../../runtime/cpus.ts'
import { announce, Barrier, BarrierBroken, waitForChange } from '../../runtime/signal.ts'
import type { Item } from './attention.ts'
import { Forward, type ForwardSetup } from './forward.ts'
import { HeadOutput } from './head-output.ts'
import { commands, controlWords, headWords, itemWords, teamSize } from './layout.ts'
import { OwnExperts } from './own-experts.ts'
import type { FromThread, ThreadSetup, ToThread } from './team-protocol.ts'

/** A thread of a coordinator's team: sleeps until a command comes, computes its share, and says so. */

const setup = workerData as ThreadSetup
const { spec, format, pack, thread, limits, buffers } = setup
const { control } = buffers
const { threads } = limits
/** About 30 µs: as long as it takes to sleep and to be woken. */
const looksMax = 1000
const isBound = setup.cpu !== null && bindThisThread(setup.cpu)
const size = teamSize(limits)
/** A thread beyond those that share the head draws no tokens either. */
const draws = thread < threads
assert(parentPort !== null)
const port = parentPort
const say = (message: FromThread) => port.postMessage(message)

const barrier = new Barrier(control, controlWords.barrier, size, isBound ? looksMax : 0)

function load(): { forward: Forward; output: HeadOutput } {
  const source = new PackTensors(pack.dir, pack.tensors)
  const share: Omit<ForwardSetup, 'experts'> = {
    spec,
    format,
    source,
    embedding: { ...source.locate('embed'), dtype: source.tensor('embed').dtype },
    thread,
    threads,
    session: { stageDir: setup.stageDir, provider: 'cpu', avoidSaturation: setup.avoidSaturation },
    buffers,
    sequenceBlocks: limits.sequenceBlocks,
    barrier,
  }
  const experts = limits.ranks > 0 ? new OwnExperts(share, setup.shards) : null
  return {
    forward: new Forward({ ...share, experts }),
    output: new HeadOutput(spec.vocabulary, limits.topMax, buffers),
  }
}

function sayFailed(thrown: unknown): void {
  const code = thrown instanceof MoeshError ? thrown.code : 'INTERNAL'
  const text = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)
  say({ kind: 'failed', code, message: thrown instanceof MoeshError ? thrown.message : text })
}

function loadOrEnd(): ReturnType<typeof load> {
  try {
    return load()
  } catch (thrown) {
    sayFailed(thrown)
    process.exit()
  }
}

const { forward, output } = loadOrEnd()

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

const argument = () => Atomics.load(control, controlWords.argument)

function run(): void {
  const from = argument()
  const rows = Atomics.load(control, controlWords.rows)
  if (from === 0) {
    items = readItems()
    output.beginStep(items)
  }
  const stoppedAt = forward.run(from, rows, items, Atomics.load(control, controlWords.pauses) !== 0)
  if (thread === 0) Atomics.store(control, controlWords.stoppedAt, stoppedAt)
  const headFollows = Atomics.load(control, controlWords.headFollows) !== 0
  if (headFollows && stoppedAt === spec.layers.length) head()
}

/** Columns of all rows, then whole rows: each thread draws from every `threads`-th row. */
function head(): void {
  const rows = Atomics.load(control, controlWords.headRows)
  forward.head(rows, (index) => buffers.head[index * headWords.size + headWords.row] ?? 0)
  for (let index = thread; draws && index < rows; index += threads) output.write(index)
  forward.lapSampling()
}

function hear(message: ToThread): void {
  switch (message.kind) {
    case 'begin':
      output.begin(message.slot, message.candidate, message.promptTokens, message.known, message.sampling)
      return
    case 'fork':
      if (message.block !== null) forward.cache.copy(message.block.from, message.block.to)
      output.copy(message.from, message.slot)
      return
    case 'free':
      output.free(message.slot)
  }
}

function hearAll(): void {
  for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port)) hear(next.message as ToThread)
}

function execute(command: number): void {
  try {
    // Not between the layers of a step: they would fill the slot of a sequence again that has just ended.
    const isBetweenLayers = command === commands.run && argument() > 0
    if (!isBetweenLayers) hearAll()
    forward.begin()
    if (command === commands.run) run()
    else if (command === commands.head) head()
    else if (command === commands.blockOut) forward.cache.read(argument(), buffers.kvBlock)
    else if (command === commands.blockIn) forward.cache.write(argument(), buffers.kvBlock)
    forward.end()
  } catch (thrown) {
    if (!(thrown instanceof BarrierBroken)) {
      sayFailed(thrown)
      Atomics.store(control, controlWords.failed, 1)
      barrier.break()
    }
  }
  if (Atomics.add(control, controlWords.finished, 1) + 1 === size) announce(control, controlWords.done)
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
