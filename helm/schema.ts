// Writes helm/moesh/values.schema.json: `node helm/schema.ts`. The shapes stand here, the descriptions are the comments
// in values.yaml, and what mirrors a flag is marked with the flag's name (`x-flag`), so that one test can compare it
// with the flag's own definition.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isMap, isScalar, parseDocument, type YAMLMap } from 'yaml'

export type Schema = { readonly [key: string]: unknown }

const chart = join(import.meta.dirname, 'moesh')
export const schemaFile = join(chart, 'values.schema.json')

/** The whole schema. Every object is closed but the maps that Kubernetes itself reads. */
export function valuesSchema(): Schema {
  const described = describe(root, documented().contents as YAMLMap, [])
  return { $schema: 'http://json-schema.org/draft-07/schema#', title: 'Values of the moesh chart', ...described }
}

/** Paths that no comment describes, neither their own nor their parent's: values.yaml is the chart's documentation. */
export function undocumented(): string[] {
  const missing: string[] = []
  describe(root, documented().contents as YAMLMap, [], missing)
  return missing
}

function object(properties: Record<string, Schema>, more: Schema = {}): Schema {
  return { type: 'object', additionalProperties: false, properties, ...more }
}
const boolean: Schema = { type: 'boolean' }
const string: Schema = { type: 'string' }
const strings: Schema = { type: 'array', items: { type: 'string' } }
const oneOf = (...values: string[]): Schema => ({ type: 'string', enum: values })
const integer = (minimum: number, maximum: number): Schema => ({ type: 'integer', minimum, maximum })
const share: Schema = { type: 'number', exclusiveMinimum: 0, maximum: 1 }
/** A value that is passed on as a flag. */
const flag = (name: string, schema: Schema): Schema => ({ ...schema, 'x-flag': name })

/** Names that Kubernetes takes; empty where the value may be left out. */
const name: Schema = { type: 'string', maxLength: 253, pattern: '^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$' }
const digest: Schema = { type: 'string', pattern: '^(sha256:[0-9a-f]{64})?$' }
const tag: Schema = { type: 'string', pattern: '^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$' }
const memory: Schema = { type: 'string', pattern: '^([0-9]+(\\.[0-9]+)?([KMGT]i?B)?)?$' }
const quantity: Schema = { type: 'string', pattern: '^[0-9]+(\\.[0-9]+)?([KMGTPE]i?|m|k)?$' }
const amount: Schema = { anyOf: [quantity, { type: 'number', minimum: 0 }] }
const countOrShare: Schema = { anyOf: [integer(0, 10_000), { type: 'string', pattern: '^(100|[0-9]{1,2})%$' }] }
const duration: Schema = { type: 'string', pattern: '^([0-9]+(h|m|s))+$' }
const cidrs: Schema = { type: 'array', items: { type: 'string', pattern: '^[0-9a-fA-F.:]+/[0-9]{1,3}$' } }
const port = integer(1, 65_535)
const pullPolicy = oneOf('Always', 'IfNotPresent', 'Never')

/** Kubernetes' own maps: the API server checks them better than a copy of its schema here would. */
const labels: Schema = { type: 'object', additionalProperties: { type: 'string' } }
const kubernetesObject: Schema = { type: 'object' }
const kubernetesList: Schema = { type: 'array', items: { type: 'object' } }
const resources = object({
  requests: { type: 'object', additionalProperties: amount },
  limits: { type: 'object', additionalProperties: amount },
})
const tolerations: Schema = {
  type: 'array',
  items: object({
    key: string,
    operator: oneOf('Exists', 'Equal', 'Lt', 'Gt'),
    value: string,
    effect: oneOf('NoSchedule', 'PreferNoSchedule', 'NoExecute'),
    tolerationSeconds: { type: 'integer' },
  }),
}
const affinity = object({ nodeAffinity: kubernetesObject, podAffinity: kubernetesObject, podAntiAffinity: kubernetesObject })

const image = object({ repository: { type: 'string', minLength: 1 }, tag, digest, pullPolicy })
const disruptionBudget = object({ enabled: boolean, maxUnavailable: countOrShare })
const bounds = { enabled: boolean, minReplicas: integer(1, 10_000), maxReplicas: integer(1, 10_000) }
const hpa = object({ ...bounds, metrics: { ...kubernetesList, minItems: 1 }, behavior: kubernetesObject })
const drainSeconds = flag('drain-timeout', integer(1, 86_400))
const scheduling = {
  nodeSelector: labels,
  tolerations,
  affinity,
  priorityClassName: name,
  podAnnotations: labels,
  podLabels: labels,
}
const workload = {
  ...scheduling,
  resources,
  podDisruptionBudget: disruptionBudget,
  hpa,
  drainSeconds,
  spread: oneOf('ScheduleAnyway', 'DoNotSchedule', ''),
  extraEnv: {
    type: 'array',
    items: object({ name: { type: 'string', minLength: 1 }, value: string, valueFrom: kubernetesObject }, { required: ['name'] }),
  },
  extraArgs: strings,
}

const expertGroup = {
  ...workload,
  replicas: integer(0, 10_000),
  ranks: flag('ranks', integer(1, 1024)),
  memory: flag('memory', memory),
  provider: flag('provider', oneOf('cpu', 'webgpu', 'cuda')),
  imageTag: tag,
  cache: object({ type: oneOf('emptyDir', 'pvc'), size: quantity, storageClass: name }),
  autoscale: object(bounds),
  runtimeClassName: name,
}

const probe = object({ periodSeconds: integer(1, 3600), failureThreshold: integer(1, 10_000), timeoutSeconds: integer(1, 3600) })

const root = object({
  // Helm hands its own `global` to every chart.
  global: { type: 'object' },
  nameOverride: { type: 'string', maxLength: 40 },
  fullnameOverride: { type: 'string', maxLength: 32 },
  clusterName: flag('cluster', { type: 'string', maxLength: 63, pattern: '^[A-Za-z0-9._-]*$' }),
  minReplicas: flag('min-replicas', integer(1, 64)),
  leaseSeconds: flag('lease', { type: 'number', minimum: 1, maximum: 3600 }),
  image,
  imagePullSecrets: { type: 'array', items: object({ name }, { required: ['name'] }) },
  log: object({
    level: flag('log-level', oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent')),
    format: flag('log-format', oneOf('json', 'pretty')),
  }),
  model: object({
    source: oneOf('demo', 'pvc', 'hostPath'),
    path: { type: 'string', pattern: '^([^/].*)?$' },
    format: flag('format', oneOf('f32', 'int8', 'int8-fast', 'int4')),
    claim: name,
    hostPath: { type: 'string', pattern: '^(/.*)?$' },
    mountOnExperts: boolean,
  }),
  coordinator: object({
    ...workload,
    replicas: integer(0, 1000),
    threads: flag('threads', integer(1, 1024)),
    provider: flag('provider', oneOf('cpu', 'webgpu')),
    kvMemory: flag('kv-memory', memory),
    maxBatchTokens: flag('max-batch-tokens', integer(0, 1_048_576)),
    maxSequences: flag('max-sequences', integer(0, 65_536)),
    speculate: flag('speculate', integer(0, 64)),
    context: flag('context', integer(0, 16_777_216)),
    preStopSeconds: integer(0, 3600),
    strategy: object({ maxSurge: countOrShare, maxUnavailable: countOrShare }),
  }),
  expertDefaults: object(expertGroup),
  experts: {
    type: 'object',
    // With the prefix of the release it must fit into a pod's label.
    propertyNames: { pattern: '^[a-z]([-a-z0-9]{0,10}[a-z0-9])?$' },
    additionalProperties: { $ref: '#/properties/expertDefaults' },
  },
  autoscaler: object({
    busyHigh: share,
    busyLow: share,
    queueMsHigh: { type: 'number', exclusiveMinimum: 0 },
    memoryHigh: share,
    upAfterSeconds: integer(0, 86_400),
    downAfterSeconds: integer(0, 86_400),
    coolDownSeconds: integer(0, 86_400),
    drainSeconds: integer(1, 86_400),
  }),
  hints: object({ enabled: boolean }),
  zoneFrom: oneOf('auto', 'podLabel', 'nodeLabel', 'none'),
  service: object({
    type: oneOf('ClusterIP', 'NodePort', 'LoadBalancer'),
    port,
    appProtocol: { type: 'string', minLength: 1 },
    annotations: labels,
    nodePort: integer(0, 65_535),
  }),
  redis: object({
    ...scheduling,
    bundled: boolean,
    image,
    password: { type: 'string', pattern: '^[A-Za-z0-9_.~-]*$' },
    existingSecret: name,
    maxMemory: { type: 'string', pattern: '^[0-9]+(kb|mb|gb)$' },
    resources,
    persistence: object({ enabled: boolean, size: quantity, storageClass: name, keep: boolean }),
    external: object({ url: flag('store', { type: 'string', pattern: '^(rediss?://.+)?$' }), existingSecret: name, caSecret: name }),
  }),
  tls: object({
    enabled: boolean,
    mode: oneOf('auto', 'cert-manager', 'chart', 'existing'),
    extraNames: strings,
    chart: object({ authorityDays: integer(1, 36_500), days: integer(1, 36_500), rotation: { type: ['string', 'integer'] } }),
    certManager: object({
      issuerRef: object({ name, kind: oneOf('Issuer', 'ClusterIssuer'), group: string }),
      duration,
      renewBefore: duration,
    }),
    existing: object({ coordinator: name, expert: name, client: name, redis: name }),
  }),
  metrics: object({ enabled: boolean, port: integer(1024, 65_535) }),
  networkPolicy: object({
    enabled: boolean,
    clients: kubernetesList,
    metrics: kubernetesList,
    dns: kubernetesList,
    apiServerCidrs: cidrs,
    apiServerPorts: { type: 'array', items: port },
    externalRedisCidrs: cidrs,
    externalRedisPort: port,
  }),
  serviceAccount: object({ create: boolean, name, annotations: labels }),
  rbac: object({ create: boolean }),
  probes: object({ startup: probe, liveness: probe, readiness: probe }),
  podUser: object({ id: integer(1, 2_147_483_647), groupId: integer(1, 2_147_483_647) }),
  test: object({ prompt: { type: 'string', minLength: 1 }, maxTokens: integer(1, 4096), resources }),
})

function documented() {
  return parseDocument(readFileSync(join(chart, 'values.yaml'), 'utf8'))
}

/** Adds to each property the comment that stands before it in values.yaml, and collects those without one. */
function describe(
  schema: Schema,
  values: YAMLMap,
  path: readonly string[],
  missing: string[] = [],
  isParentDescribed = false,
): Schema {
  const properties = schema.properties as Record<string, Schema> | undefined
  if (properties === undefined) return schema
  const described: Record<string, Schema> = { ...properties }
  for (const [index, pair] of values.items.entries()) {
    if (!isScalar(pair.key)) continue
    const key = String(pair.key.value)
    const own = properties[key]
    const at = [...path, key]
    if (own === undefined) throw new Error(`values.yaml: ${at.join('.')} has no schema`)
    // A first key's comment belongs to the map, in this library's eyes.
    const comment = pair.key.commentBefore ?? (index === 0 ? values.commentBefore : undefined) ?? ''
    // A blank line parts it from what is said of the whole file.
    const description = (comment.split(/\n\s*\n/).at(-1) ?? '')
      .split('\n')
      .map((line) => line.replace(/^ ?(-- )?/, ''))
      .join(' ')
      .trim()
    const inner = isMap(pair.value) ? describe(own, pair.value, at, missing, description !== '') : own
    if (description === '' && !isParentDescribed && !('properties' in own)) missing.push(at.join('.'))
    described[key] = description === '' ? inner : { description, ...inner }
  }
  for (const key of Object.keys(properties)) {
    if (key !== 'global' && !values.has(key) && !isParentDescribed) missing.push(`${[...path, key].join('.')} (not in values.yaml)`)
  }
  return { ...schema, properties: described }
}

if (process.argv[1] === import.meta.filename) writeFileSync(schemaFile, `${JSON.stringify(valuesSchema(), null, 2)}\n`)
