import assert from 'node:assert/strict'
import { planPlacement } from '../../../services/cluster/planner/plan.ts'
import { type Context, helmArguments, release } from '../context.ts'
import { kitScript } from '../kit.ts'
import { isReady, type KubeObject, until } from '../kube.ts'

/** Two GPUs, three pods that want one each: two run, the third waits, and Kubernetes and moesh say why. */
export async function oneGpuPodTooManyIsExplained({ env, kube }: Context): Promise<void> {
  await kitScript(env, 'fake-gpus.sh', '2')
  const group = 'experts.gpu'
  await kube.helm(
    3,
    ...helmArguments(
      'upgrade',
      `${group}.replicas=3`,
      `${group}.resources.limits.nvidia\\.com/gpu=1`,
      `${group}.autoscale.enabled=true`,
      `${group}.autoscale.minReplicas=3`,
    ),
  )
  const pods = () => kube.list('pods', 'moesh.dev/group=gpu')
  try {
    await until('two of three are ready', async () => (await pods()).filter(isReady).length === 2, 180_000)
    const waiting = (await pods()).filter(({ status }) => status?.phase === 'Pending')
    assert.equal(waiting.length, 1)
    const isExplained = async () => {
      const events = await kube.eventsOf(`${release}-expert-gpu`)
      return events.some(({ reason, message }) => reason === 'Unschedulable' && message.includes('nvidia.com/gpu'))
    }
    await until('an Event names what is missing', isExplained, 60_000)
    const status = await kube.kubectl(
      'exec',
      `deploy/${release}-coordinator`,
      '--',
      'moesh',
      'status',
      '--server',
      '127.0.0.1:50051',
    )
    assert.match(status.stdout + status.stderr, /nvidia\.com\/gpu/)
  } finally {
    await kube.helm(3, ...helmArguments('upgrade'), '--wait')
    await kitScript(env, 'fake-gpus.sh', '0')
  }
}

/**
 * 32 fake nodes in four zones: pods spread evenly, each carries the zone that its process would be told, and the planner
 * puts the two copies of every expert into different ones of these zones. The pods have no processes.
 */
export async function podsSpreadOverZonesAndKnowThem({ env, kube, measured }: Context): Promise<void> {
  await kitScript(env, 'kwok-nodes.sh', '32', '4', '8')
  const group = 'experts.fake'
  await kube.helm(
    3,
    ...helmArguments(
      'upgrade',
      `${group}.replicas=32`,
      `${group}.spread=DoNotSchedule`,
      // The fake nodes say nothing of their disks.
      `${group}.resources.requests.ephemeral-storage=0`,
      `${group}.resources.limits.ephemeral-storage=0`,
      `${group}.nodeSelector.type=kwok`,
      `${group}.tolerations[0].key=kwok.x-k8s.io/node`,
      `${group}.tolerations[0].operator=Exists`,
    ),
  )
  try {
    const pods = () => kube.list('pods', 'moesh.dev/group=fake')
    await until('32 pods on 32 nodes', async () => (await pods()).filter(isReady).length === 32, 180_000)
    const nodes = new Map((await kube.list('nodes')).map(({ metadata }) => [metadata.name, metadata.labels ?? {}]))
    const counts = new Map<string, number>()
    for (const pod of await pods()) {
      const zone = pod.metadata.labels?.['topology.kubernetes.io/zone'] ?? ''
      assert.equal(zone, nodes.get(String(pod.spec?.nodeName))?.['topology.kubernetes.io/zone'])
      counts.set(zone, (counts.get(zone) ?? 0) + 1)
    }
    assert.deepEqual([...counts.keys()].sort(), ['zone-a', 'zone-b', 'zone-c', 'zone-d'])
    assert.deepEqual(new Set(counts.values()), new Set([8]))
    measured('experts whose two copies are in different zones', spreadOverZones(await pods()))
  } finally {
    await kube.helm(3, ...helmArguments('upgrade'), '--wait')
    await kube.attempt('delete', 'nodes', '-l', 'type=kwok')
  }
}

/** OLMoE's layers on these pods. Returns how many experts there are; each must live in at least two zones. */
function spreadOverZones(pods: readonly KubeObject[]): number {
  const nodes = pods.map(({ metadata }) => ({
    id: metadata.name,
    zone: metadata.labels?.['topology.kubernetes.io/zone'] ?? '',
    memoryBytes: 4 * 2 ** 30,
    ranks: 1,
  }))
  const experts = 64
  const layers = Array.from({ length: 16 }, (_, layer) => ({
    layer,
    experts,
    shardBytes: 6_340_608,
    // Some experts are asked for much more often than others.
    loads: Float64Array.from({ length: experts }, (_, expert) => 1000 / (1 + expert)),
  }))
  const { copies, unmet } = planPlacement({ layers, nodes, present: [], minReplicas: 2 })
  assert.deepEqual(unmet, [])
  const zoneOf = new Map(nodes.map(({ id, zone }) => [id, zone]))
  const zones = new Map<string, Set<string>>()
  for (const { layer, expert, node } of copies) {
    const name = `${layer}/${expert}`
    zones.set(name, (zones.get(name) ?? new Set()).add(zoneOf.get(node) ?? ''))
  }
  assert.equal(zones.size, layers.length * experts)
  for (const [name, its] of zones) assert.ok(its.size >= 2, `all copies of expert ${name} are in ${[...its].join()}`)
  return zones.size
}
