import { randomUUID } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { z } from 'zod'
import { ApiClient } from '../services/cli/client.ts'
import { preparePack } from '../services/cli/model.ts'
import { readProfile } from '../services/cli/profile.ts'
import { weightFormats } from '../services/model/format.ts'
import { ensureCheckpoint } from './checkpoint.ts'
import { startCluster } from './cluster.ts'
import { startMoesh } from './moesh-process.ts'
import { UsageError, wholeNumber } from './options.ts'
import { benchShapes } from './shape.ts'
import { summarise } from './statistics.ts'

/**
 * What `--speculate` is worth: tokens/s without it and with it, of servers that are started in turn, get the same requests
 * and must answer with the same tokens. A random model that may choose from few tokens begins to repeat itself; one that
 * may choose from all does not:
 *
 *   node bin/run.mjs bench/speculate.ts [--speculate 8] [--format int8] [--nodes 0] [--delay MS] [--pairs 5] [--tokens 192]
 *     [--concurrency 1] [--threads 2] [--cache DIR]
 *
 * `--nodes 0`: `moesh serve`; else a cluster with so many expert nodes of one rank, `--delay` ms of round trip away.
 */

const shape = benchShapes['olmoe-4l']
const { values } = parseArgs({
  options: {
    speculate: { type: 'string', default: '8' },
    format: { type: 'string', default: 'int8' },
    nodes: { type: 'string', default: '0' },
    delay: { type: 'string', default: '0' },
    pairs: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '192' },
    concurrency: { type: 'string', default: '1' },
    threads: { type: 'string', default: '2' },
    cache: { type: 'string', default: join(tmpdir(), 'moesh-bench') },
  },
})
const number = (name: Exclude<keyof typeof values, 'format' | 'cache'>, least = 1) =>
  wholeNumber(name, values[name], least)
const format = weightFormats.find((known) => known === values.format)
if (format === undefined) throw new UsageError(`--format: "${values.format}" is not ${weightFormats.join(', ')}`)
const settings = {
  speculate: number('speculate'),
  format,
  nodes: number('nodes', 0),
  delay: number('delay', 0),
  pairs: number('pairs'),
  tokens: number('tokens', 2),
  concurrency: number('concurrency'),
  threads: number('threads'),
  cache: values.cache,
}

type Server = { grpc: string; stop(): Promise<void> }

async function start(pack: string, guesses: number): Promise<Server> {
  const { nodes, threads, cache, delay } = settings
  const flags = ['--speculate', `${guesses}`]
  if (nodes === 0) {
    const own = ['--ranks', `${threads}`, '--threads', `${threads}`, '--grpc', '127.0.0.1:0']
    return startMoesh(['serve', pack, '--cache', cache, ...own, ...flags])
  }
  const behindProxies = delay > 0
  const options = { pack, cacheDir: cache, expertNodes: nodes, threads, behindProxies, coordinatorFlags: flags }
  const cluster = await startCluster(options)
  if (behindProxies) cluster.setRoundTripMs(delay)
  return cluster
}

const answerSchema = z.object({ delta: z.object({ tokens: z.array(z.object({ id: z.number() })) }).nullable() })

type Text = { name: string; choices: number }
/** Behind the first token: what a sequence gets in a step, and the rows that are computed for a token. */
type Run = { ids: number[]; tokensPerSecond: number; perStep: number; rowsPerToken: number }

async function answer(client: ApiClient, text: Text, prompt: number): Promise<number[]> {
  const { vocabulary } = shape
  const choices = Array.from({ length: text.choices }, (_, i) => ({
    key: Math.floor((i * vocabulary) / text.choices),
    value: 100,
  }))
  const request = {
    request_id: randomUUID(),
    token_ids: { ids: Array.from({ length: 16 }, (_, i) => (prompt * 7919 + i * 613) % vocabulary) },
    sampling: {
      temperature: 0,
      max_tokens: settings.tokens,
      ignore_eos: true,
      logit_bias: choices,
    },
    output: { no_text: true },
  }
  const ids: number[] = []
  for await (const message of client.stream('moesh.v1.Inference/Generate', request, new AbortController().signal)) {
    ids.push(...(answerSchema.parse(message).delta?.tokens ?? []).map(({ id }) => id))
  }
  return ids
}

async function decoded(client: ApiClient): Promise<{ sequences: number; rows: number }> {
  const { steps } = await readProfile(client)
  return steps.find(({ kind }) => kind === 'decode') ?? { sequences: 0, rows: 0 }
}

async function run(client: ApiClient, text: Text, round: number): Promise<Run> {
  const { concurrency } = settings
  const prompts = Array.from({ length: concurrency }, (_, i) => 1 + round * concurrency + i)
  const before = await decoded(client)
  const startedMs = performance.now()
  const ids = (await Promise.all(prompts.map((prompt) => answer(client, text, prompt)))).flat()
  const tokensPerSecond = (1000 * ids.length) / (performance.now() - startedMs)
  const after = await decoded(client)
  const sequences = after.sequences - before.sequences
  return {
    ids,
    tokensPerSecond,
    perStep: (ids.length - concurrency) / sequences,
    rowsPerToken: (after.rows - before.rows) / (ids.length - concurrency),
  }
}

const texts: Text[] = [
  { name: 'repeats itself', choices: 32 },
  { name: 'repeats nothing', choices: 0 },
]

/** Of one server, a run of each text; a first round, while code is compiled, is not measured. */
async function measure(pack: string, guesses: number, round: number): Promise<Run[]> {
  const server = await start(pack, guesses)
  const noTls = { tlsCert: undefined, tlsKey: undefined, tlsCa: undefined }
  const client = await ApiClient.open({ server: server.grpc, ...noTls })
  try {
    for (const text of texts) await run(client, text, 0)
    const runs: Run[] = []
    for (const text of texts) runs.push(await run(client, text, round))
    return runs
  } finally {
    client.close()
    await server.stop()
  }
}

const checkpoint = ensureCheckpoint(settings.cache, shape, 1, () => {})
const pack = await preparePack({ model: checkpoint, cache: settings.cache, format: settings.format })
const pairs: { without: Run[]; withGuesses: Run[] }[] = []
for (let round = 1; round <= settings.pairs; round++) {
  const pair: Record<number, Run[]> = {}
  // Each goes first in every other round.
  const order = [0, settings.speculate]
  for (const guesses of round % 2 === 0 ? order.toReversed() : order)
    pair[guesses] = await measure(pack, guesses, round)
  pairs.push({ without: pair[0] ?? [], withGuesses: pair[settings.speculate] ?? [] })
}
for (const [index, { name }] of texts.entries()) {
  const runs = pairs.flatMap(({ without, withGuesses }) => {
    const [a, b] = [without[index], withGuesses[index]]
    if (a === undefined || b === undefined) return []
    if (`${a.ids}` !== `${b.ids}`) throw new Error(`${name}: the answers differ`)
    return { before: a.tokensPerSecond, after: b.tokensPerSecond, ratio: b.tokensPerSecond / a.tokensPerSecond, ...b }
  })
  const of = (pick: (run: (typeof runs)[number]) => number) => summarise(runs.map(pick))
  const ratio = of((it) => it.ratio)
  console.log(
    `${name}: ${of((it) => it.before).median.toFixed(1)} tokens/s without, ${of((it) => it.after).median.toFixed(1)} with, ` +
      `${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}…${ratio.max.toFixed(2)}); ` +
      `${of((it) => it.perStep).median.toFixed(2)} tokens a step, ${of((it) => it.rowsPerToken).median.toFixed(2)} rows a token`,
  )
}
