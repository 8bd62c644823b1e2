import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Context, connect, helmArguments, prompts, release } from '../context.ts'
import { isReady, until } from '../kube.ts'
import { RunningStreams, type StreamReport } from '../streams.ts'

const experts = `statefulset/${release}-expert-default`

/** Does it while eight streams run, which must notice nothing. */
async function underLoad(context: Context, name: string, change: () => Promise<void>): Promise<StreamReport> {
  const client = await connect(context)
  const streams = new RunningStreams(client, prompts, context.reference, name)
  let report: StreamReport
  try {
    await sleep(2000)
    await change()
  } finally {
    report = await streams.finish()
    client.close()
  }
  context.measured(`${name}: streams, resumes, longest gap between tokens in ms`, Object.values(report).join(', '))
  return report
}

export async function expertsScaleByHand(context: Context): Promise<void> {
  const { kube, measured } = context
  const scaledTo = async (count: number) => {
    await kube.kubectl('scale', experts, `--replicas=${count}`)
    const isSo = async () => {
      const pods = await kube.pods('expert')
      return pods.length === count && pods.every(isReady)
    }
    const tookMs = await until(`${count} expert pods are ready`, isSo, 180_000)
    measured(`kubectl scale to ${count} until ready, seconds`, (tookMs / 1000).toFixed(1))
  }
  const report = await underLoad(context, 'scale', async () => {
    await scaledTo(5)
    await sleep(3000)
    await scaledTo(2)
    await sleep(3000)
  })
  assert.equal(report.resumes, 0)
  await scaledTo(3)
}

export async function anExpertDiesByForce(context: Context): Promise<void> {
  const report = await underLoad(context, 'force-delete', async () => {
    await context.kube.kubectl('delete', 'pod', `${release}-expert-default-1`, '--grace-period=0', '--force')
    await context.kube.rollout(experts)
    await sleep(3000)
  })
  assert.equal(report.resumes, 0)
}

export async function anUpgradeChangesAnExpertResource(context: Context): Promise<void> {
  const from = performance.now()
  await underLoad(context, 'upgrade', async () => {
    await context.kube.helm(3, ...helmArguments('upgrade', 'expertDefaults.resources.limits.memory=800Mi'))
    await context.kube.rollout(experts)
  })
  context.measured('helm upgrade of three experts until done, seconds', ((performance.now() - from) / 1000).toFixed(1))
}

export async function coordinatorsRestartOneByOne(context: Context): Promise<void> {
  const { kube } = context
  await kube.helm(3, ...helmArguments('upgrade', 'coordinator.replicas=2'), '--wait')
  await underLoad(context, 'restart', async () => {
    await kube.kubectl('rollout', 'restart', `deployment/${release}-coordinator`)
    await kube.rollout(`deployment/${release}-coordinator`)
    await sleep(2000)
  })
  await kube.helm(3, ...helmArguments('upgrade', 'coordinator.replicas=1'), '--wait')
}

export async function theLeaderScalesExperts(context: Context): Promise<void> {
  await growsAndShrinks(
    context,
    'autoscale',
    'experts.default.autoscale.enabled=true',
    'experts.default.autoscale.minReplicas=2',
    'experts.default.autoscale.maxReplicas=4',
    // The demo model keeps no rank very busy, so the thresholds are low; what is tested is the mechanism.
    'autoscaler.busyHigh=0.05',
    'autoscaler.busyLow=0.02',
    'autoscaler.upAfterSeconds=5',
    'autoscaler.downAfterSeconds=10',
    'autoscaler.coolDownSeconds=5',
  )
  const reasons = (await context.kube.eventsOf(`${release}-expert-default`)).map(({ reason }) => reason)
  for (const reason of ['ScaledUp', 'Draining', 'ScaledDown']) assert.ok(reasons.includes(reason), `no Event ${reason}`)
}

/** On what the pods themselves tell, with the leader's own scaling off. */
export async function anHpaScalesExperts(context: Context): Promise<void> {
  await growsAndShrinks(
    context,
    'hpa',
    'experts.default.hpa.enabled=true',
    'experts.default.hpa.minReplicas=2',
    'experts.default.hpa.maxReplicas=4',
    'experts.default.hpa.metrics[0].type=Pods',
    'experts.default.hpa.metrics[0].pods.metric.name=moesh_expert_busy_ratio',
    'experts.default.hpa.metrics[0].pods.target.type=AverageValue',
    // As above: the demo model keeps no rank very busy.
    'experts.default.hpa.metrics[0].pods.target.averageValue=20m',
    'experts.default.hpa.behavior.scaleDown.stabilizationWindowSeconds=10',
  )
  const events = (await context.kube.eventsOf(`${release}-expert-default`)).map(({ message }) => message)
  assert.ok(
    events.some((message) => message.includes('pods metric moesh_expert_busy_ratio above target')),
    `no Event says why it has grown: ${events.join('; ')}`,
  )
}

async function growsAndShrinks(context: Context, name: string, ...sets: string[]): Promise<void> {
  const { kube, measured } = context
  await kube.helm(3, ...helmArguments('upgrade', 'experts.default.replicas=2', ...sets), '--wait')
  const has = (count: number) => async () => (await kube.pods('expert')).filter(isReady).length === count
  await until('two experts', has(2), 120_000)
  await underLoad(context, name, async () => {
    measured(
      `${name}: load to 4 experts, seconds`,
      ((await until('four experts under load', has(4), 240_000)) / 1000).toFixed(1),
    )
  })
  measured(
    `${name}: idle to 2 experts, seconds`,
    ((await until('two experts without load', has(2), 300_000)) / 1000).toFixed(1),
  )
  await kube.helm(3, ...helmArguments('upgrade', 'experts.default.replicas=3'), '--wait')
}
