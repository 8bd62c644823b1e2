import {
  address,
  choice,
  count,
  counts,
  cpuChoice,
  name,
  path,
  real,
  size,
  storeUrl,
  text,
  unsigned64,
  type ValueKind,
} from './values.ts'

/**
 * Every flag of every command, once: command line, environment (`MOESH_SOME_FLAG`), help, documentation and the chart's
 * schema are made from it or compared with it.
 */
export type Flag<T = unknown> = { kind: ValueKind<T>; help: string; isSwitch: boolean; isList: boolean }

function flag<T>(kind: ValueKind<T>, help: string): Flag<T> {
  return { kind, help, isSwitch: false, isList: false }
}

function list<T>(kind: ValueKind<T>, help: string): Flag<T[]> {
  return { kind: { ...kind, read: (value) => wrapped(kind.read(value)) }, help, isSwitch: false, isList: true }
}

function wrapped<T>(value: T | undefined): T[] | undefined {
  return value === undefined ? undefined : [value]
}

/** Given or not; in the environment `true`/`1` or `false`/`0`. */
function toggle(help: string): Flag<boolean> {
  const read = (value: string) =>
    ['true', '1'].includes(value) ? true : ['false', '0'].includes(value) ? false : undefined
  return { kind: { placeholder: '', allowed: 'true or false', read }, help, isSwitch: true, isList: false }
}

export const flags = {
  grpc: flag(address(0), 'where to listen; port 0 takes a free one'),
  advertise: flag(address(1), 'what peers dial, where it differs from the listening address'),
  health: flag(
    address(0),
    'a second port that answers health checks alone, in the clear (for probes that know no TLS)',
  ),
  'metrics-listen': flag(
    address(0),
    'a port that answers GET /metrics for Prometheus and nothing else, in the clear: it tells of load and nodes',
  ),
  store: flag(storeUrl, 'where the cluster keeps its facts: memory: (only serve), redis://… or rediss://…'),
  cluster: flag(name, 'several clusters may share one Redis'),
  id: flag(name, "the node's id, unique in the cluster"),
  zone: flag(text, 'failure zone; kubernetes://NODE asks Kubernetes for the zone of that node'),
  kubernetes: flag(path('FILE'), 'settings for pod hints and for scaling expert groups (the chart writes them)'),
  ranks: flag(count(1, 1024), 'computing threads (or devices) of this process'),
  memory: flag(size, 'what shards may take, e.g. 8GiB'),
  provider: flag(choice('cpu', 'webgpu', 'cuda'), 'what computes: used or refused, never silently replaced'),
  'min-replicas': flag(count(1, 64), 'live copies that every expert should have'),
  lease: flag(real('SECONDS', 1, 3600), 'a node silent for so long is lost'),
  format: flag(choice('f32', 'int8', 'int8-fast', 'int4'), 'weight format, where a checkpoint is given'),
  threads: flag(count(1, 1024), "threads of the coordinator's own share"),
  cpus: flag(
    cpuChoice,
    'CPUs that the process keeps to, by default with a computing thread each; any: the system moves threads about',
  ),
  'max-batch-tokens': flag(count(1, 1_048_576), 'most rows of one step'),
  'max-sequences': flag(count(1, 65_536), 'most sequences that run at once'),
  speculate: flag(
    count(0, 64),
    'most tokens that a step guesses of a sequence that repeats itself or its prompt; no output depends on it',
  ),
  context: flag(count(1, 16_777_216), "longest sequence; at most the model's"),
  'kv-memory': flag(
    size,
    'what the KV cache may take, e.g. 4GiB; prompts that begin like earlier ones are found in it',
  ),
  'drain-timeout': flag(
    real('SECONDS', 0, 86_400),
    'how long SIGTERM lets running work finish before it is handed over',
  ),
  'ready-file': flag(
    path('FILE'),
    'once the process can serve, it writes FILE (atomically): {"pid", "id", "role", "grpc"} with the real address',
  ),
  'log-level': flag(choice('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'), 'what is logged'),
  'log-format': flag(choice('pretty', 'json'), 'how it is logged, to stderr'),
  'tls-cert': flag(path('FILE'), "this process's certificate, PEM; its names say what it may act as"),
  'tls-key': flag(path('FILE'), 'the key of that certificate, PEM'),
  'tls-ca': flag(path('FILE'), "the authorities that peers' certificates are checked by, PEM"),
  insecure: toggle('listen beyond loopback without TLS: everybody who reaches the port may use the cluster'),
  model: flag(path('DIR'), 'a pack, or a checkpoint that is packed first'),
  cache: flag(path('DIR'), 'where packs made of checkpoints, and shards, are kept'),
  name: flag(name, "the model's id in the API"),
  server: flag(address(1), 'a coordinator of a running cluster'),
  json: toggle('print one JSON document instead of text'),
  watch: toggle('print it again whenever it changed, until interrupted'),
  'expert-load': toggle('the load of each expert too'),
  'dry-run': toggle('say what would be done and why, and do nothing'),
  perplexity: flag(path('FILE'), 'also compute the perplexity of this text'),
  window: flag(count(2, 1_048_576), 'perplexity: tokens of each window, which are scored without what stands before'),
  tokens: flag(count(2, 100_000_000), 'perplexity: how many of the first tokens of the text are used'),
  chat: toggle("the prompt is a user's message, put into the model's chat template"),
  'max-tokens': flag(count(1, 16_777_216), 'most tokens to generate'),
  temperature: flag(real('T', 0, 1000), '0 is greedy'),
  'top-p': flag(real('P', 0, 1), 'only the likeliest tokens with this share of the probability'),
  'top-k': flag(count(0, 16_777_216), 'only the K likeliest tokens; 0 is off'),
  'min-p': flag(real('P', 0, 1), "only tokens with this share of the likeliest one's probability"),
  seed: flag(unsigned64, 'the same seed gives the same text'),
  stop: list(text, 'end before this text; may be given several times'),
  concurrency: flag(counts(1, 4096, 64), 'how many requests run at once, step by step'),
  requests: flag(count(1, 1_000_000), 'how many requests each step has, at least its concurrency'),
  'prompt-tokens': flag(count(1, 16_777_216), 'length of each prompt, in random tokens'),
  svg: flag(path('FILE'), 'also write a plot there'),
  profile: toggle("also where each step's time went, from the coordinator's counters"),
} satisfies Record<string, Flag>

export type FlagName = keyof typeof flags
export type ValueOf<F extends FlagName> = (typeof flags)[F] extends Flag<infer T> ? T : never

export function environmentName(flagName: string): string {
  return `MOESH_${flagName.replaceAll('-', '_').toUpperCase()}`
}
