import type { FlagName, ValueOf } from './flags.ts'

/** What a command takes. Positionals in brackets may be left out. */
export type Command = {
  summary: string
  positionals: readonly string[]
  flags: readonly FlagName[]
  /** Values where nothing is given. */
  defaults: { readonly [F in FlagName]?: ValueOf<F> }
  /** Defaults that are found out at start, in words. */
  described?: { readonly [F in FlagName]?: string }
}

const logging = ['log-level', 'log-format'] as const
const tls = ['tls-cert', 'tls-key', 'tls-ca', 'insecure'] as const
const clientTls = ['tls-cert', 'tls-key', 'tls-ca'] as const
const process = ['drain-timeout', 'ready-file', ...logging, ...tls] as const
const node = ['grpc', 'advertise', 'health', 'metrics-listen', 'store', 'cluster', 'id', 'zone'] as const
const engine = ['threads', 'cpus', 'max-batch-tokens', 'max-sequences', 'speculate', 'context', 'kv-memory'] as const

const nodeDefaults = {
  store: 'redis://127.0.0.1:6379',
  cluster: 'default',
  provider: 'cpu',
  lease: 3,
  insecure: false,
  'log-level': 'info',
  'drain-timeout': 60,
} as const
const described = {
  advertise: 'the listening address',
  health: 'none',
  'metrics-listen': 'none',
  id: 'host name and a random suffix',
  zone: 'none',
  ranks: 'cores; 1 on a device',
  memory: 'measured',
  threads: 'cores',
  cpus: 'one each where there are as many as computing threads, else any',
  'max-batch-tokens': 'from the model and the memory',
  'max-sequences': 'from the model and the memory',
  context: "the model's",
  'kv-memory': 'from the memory',
  'ready-file': 'none',
  'log-format': 'pretty on a terminal, else json',
  cache: '$XDG_CACHE_HOME/moesh or ~/.cache/moesh',
  'tls-cert': 'none',
  'tls-key': 'none',
  'tls-ca': 'none',
  kubernetes: 'none',
} as const

export const commands = {
  serve: {
    summary: 'everything in one process: coordinator, experts on its threads, store in memory',
    positionals: ['[MODEL]'],
    flags: [...node, 'model', 'format', 'cache', 'ranks', 'memory', 'provider', ...engine, ...process],
    defaults: { ...nodeDefaults, grpc: '127.0.0.1:50051', store: 'memory:', format: 'int8', speculate: 0 },
    described: { ...described, model: 'the demo model' },
  },
  coordinator: {
    summary: 'a coordinator process; waits for expert nodes until every expert has a live copy',
    positionals: [],
    flags: [
      ...node,
      'model',
      'format',
      'cache',
      'min-replicas',
      'lease',
      'provider',
      'kubernetes',
      ...engine,
      ...process,
    ],
    defaults: { ...nodeDefaults, grpc: '127.0.0.1:50051', format: 'int8', 'min-replicas': 1, speculate: 0 },
    described: { ...described, model: 'required' },
  },
  expert: {
    summary: 'an expert process: joins through the store, receives shards, computes',
    positionals: [],
    flags: [...node, 'ranks', 'cpus', 'memory', 'provider', 'lease', 'cache', 'model', 'kubernetes', ...process],
    defaults: { ...nodeDefaults, grpc: '127.0.0.1:0' },
    described: { ...described, model: 'shards come from the coordinators' },
  },
  pack: {
    summary: 'converts a checkpoint to a pack; goes on with what was interrupted',
    positionals: ['CHECKPOINT', 'PACK'],
    flags: ['format', 'name', 'json', ...logging],
    defaults: { format: 'int8', json: false, 'log-level': 'info' },
    described: { name: "the checkpoint's directory name", 'log-format': described['log-format'] },
  },
  inspect: {
    summary: 'describes a checkpoint or pack',
    positionals: ['PATH'],
    flags: ['memory', 'json'],
    defaults: { json: false },
    described: { memory: 'several sizes' },
  },
  verify: {
    summary: "checks every digest of a pack; with --perplexity, the model's too",
    positionals: ['PACK'],
    flags: ['perplexity', 'window', 'tokens', 'ranks', 'threads', 'provider', 'json', ...logging],
    defaults: { window: 256, tokens: 16_384, provider: 'cpu', json: false, 'log-level': 'warn' },
    described: { perplexity: 'none', ranks: described.ranks, threads: 'cores', 'log-format': described['log-format'] },
  },
  generate: {
    summary: 'streams a continuation of PROMPT, from --server or from --model in this process',
    positionals: ['PROMPT'],
    flags: [
      'server',
      'model',
      'format',
      'cache',
      'ranks',
      'threads',
      'provider',
      'chat',
      'max-tokens',
      'temperature',
      'top-p',
      'top-k',
      'min-p',
      'seed',
      'stop',
      'json',
      ...clientTls,
      'insecure',
      ...logging,
    ],
    defaults: { format: 'int8', provider: 'cpu', chat: false, json: false, insecure: false, 'log-level': 'warn' },
    described: {
      ...described,
      server: 'none: the model runs in this process',
      model: 'the demo model',
      'max-tokens': 'up to the context length',
      temperature: "the model's",
      'top-p': "the model's",
      'top-k': "the model's",
      'min-p': "the model's",
      seed: 'drawn',
      stop: 'none',
    },
  },
  status: {
    summary: 'nodes, placement, coverage and load of a running cluster',
    positionals: [],
    flags: ['server', 'watch', 'expert-load', 'json', ...clientTls, 'insecure'],
    defaults: { server: '127.0.0.1:50051', watch: false, 'expert-load': false, json: false, insecure: false },
    described,
  },
  bench: {
    summary: 'throughput and latency of a running cluster over steps of concurrency',
    positionals: [],
    flags: [
      'server',
      'concurrency',
      'requests',
      'prompt-tokens',
      'max-tokens',
      'profile',
      'json',
      'svg',
      ...clientTls,
      'insecure',
    ],
    defaults: {
      server: '127.0.0.1:50051',
      concurrency: [1, 2, 4, 8],
      'prompt-tokens': 128,
      'max-tokens': 64,
      profile: false,
      json: false,
      insecure: false,
    },
    described: { ...described, requests: 'four times the concurrency', svg: 'none' },
  },
  drain: {
    summary: 'moves everything off a node and keeps it empty',
    positionals: ['NODE'],
    flags: ['server', 'json', ...clientTls, 'insecure'],
    defaults: { server: '127.0.0.1:50051', json: false, insecure: false },
    described,
  },
  undrain: {
    summary: 'takes a drained node back',
    positionals: ['NODE'],
    flags: ['server', 'json', ...clientTls, 'insecure'],
    defaults: { server: '127.0.0.1:50051', json: false, insecure: false },
    described,
  },
  rebalance: {
    summary: 'plans a placement and carries it out',
    positionals: [],
    flags: ['server', 'dry-run', 'json', ...clientTls, 'insecure'],
    defaults: { server: '127.0.0.1:50051', 'dry-run': false, json: false, insecure: false },
    described,
  },
} as const satisfies Record<string, Command>

export type CommandName = keyof typeof commands

export function isCommandName(name: string): name is CommandName {
  return Object.hasOwn(commands, name)
}
