import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Context, connect, helmArguments, prompts, release } from '../context.ts'
import { run } from '../kit.ts'
import { until } from '../kube.ts'

export async function wrongValuesAreRefused({ kube }: Context): Promise<void> {
  for (const version of [3, 4] as const) {
    const refused = await kube.attemptHelm(
      version,
      ...helmArguments('install', 'experts.default.provider=tpu', 'coordinator.replica=1'),
    )
    assert.notEqual(refused.status, 0)
    assert.match(refused.stderr, /experts\/default\/provider/)
    assert.match(refused.stderr, /replica/)
  }
}

export async function installServesTokens(context: Context): Promise<void> {
  const { kube, measured, reference } = context
  const from = performance.now()
  await kube.helm(3, ...helmArguments('install'))
  await until(
    'the Service has an address',
    async () => {
      const slices = await kube.list('endpointslices', `kubernetes.io/service-name=${release}`)
      return slices.some(({ endpoints }) =>
        (endpoints as { conditions: { ready: boolean } }[] | null)?.some((each) => each.conditions.ready),
      )
    },
    300_000,
  )
  const client = await connect(context)
  const first = prompts[0]
  assert.ok(first)
  const { tokens, firstTokenMs } = await client.generate(first, 'install')
  measured('helm install to the first token, seconds', ((performance.now() - from) / 1000).toFixed(1))
  measured('first token of the first request, ms', Math.round(firstTokenMs))
  assert.deepEqual(tokens, reference[0])
  await kube.rollout(`statefulset/${release}-expert-default`)
  assert.equal((await kube.pods('expert')).length, 3)
  client.close()
}

export async function allTokensEqualTheEmbeddedOnes(context: Context): Promise<void> {
  const client = await connect(context)
  const generated = await Promise.all(prompts.map((prompt, index) => client.generate(prompt, `equal-${index}`)))
  assert.deepEqual(
    generated.map(({ tokens }) => tokens),
    context.reference,
  )
  client.close()
}

/** With nothing but grpcurl and reflection: no .proto file, no code of ours. */
export async function aStockClientGenerates({ env, kube, reference }: Context): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'moesh-grpcurl-'))
  try {
    for (const key of ['ca.crt', 'tls.crt', 'tls.key']) {
      await writeFile(join(folder, key), await kube.secret(`${release}-client-tls`, key), { mode: 0o600 })
    }
    const service = await kube.get('service', release)
    const [prompt] = prompts
    assert.ok(prompt)
    const sampling = { temperature: 1, seed: prompt.seed, max_tokens: prompt.maxTokens, ignore_eos: true }
    const files = ['-cacert', join(folder, 'ca.crt'), '-cert', join(folder, 'tls.crt'), '-key', join(folder, 'tls.key')]
    const name = ['-servername', `${release}.${kube.namespace}.svc`]
    const request = ['-d', JSON.stringify({ text: prompt.text, sampling })]
    const address = `${String(service.spec?.clusterIP)}:50051`
    const { stdout } = await run('grpcurl', [...files, ...name, ...request, address, 'moesh.v1.Inference/Generate'], {
      env,
    })
    // One JSON document after another, without a separator.
    const responses = JSON.parse(`[${stdout.trim().replaceAll(/\}\s*\n\{/g, '},{')}]`) as {
      delta?: { tokens?: { id?: number }[] }
    }[]
    const tokens = responses.flatMap(({ delta }) => delta?.tokens?.map(({ id }) => id ?? 0) ?? [])
    assert.deepEqual(tokens, reference[0])
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

export async function helmTestPasses({ kube }: Context): Promise<void> {
  const { stdout } = await kube.helm(4, 'test', release)
  assert.match(stdout, /Succeeded/)
  assert.equal((await kube.pods('test')).length, 0)
}

export async function uninstallLeavesOnlyWhatIsKept({ kube }: Context): Promise<void> {
  await kube.helm(3, 'uninstall', release, '--wait')
  const kinds =
    'deploy,sts,pods,services,configmaps,secrets,pvc,networkpolicies,pdb,serviceaccounts,roles,rolebindings,hpa'
  const ours = async () => {
    const left = (await kube.list(kinds)).map(({ kind, metadata }) => `${kind}/${metadata.name}`)
    return left.filter((name) => !['ConfigMap/kube-root-ca.crt', 'ServiceAccount/default'].includes(name)).sort()
  }
  const kept = ['ca', 'client-tls', 'coordinator-tls', 'expert-tls', 'redis', 'redis-tls'].map(
    (name) => `Secret/${release}-${name}`,
  )
  await until('only kept secrets are left', async () => (await ours()).every((name) => kept.includes(name)), 120_000)
  assert.deepEqual(await ours(), kept)
}

/** The second install finds the kept authority and password; so do old clients. */
export async function helm4InstallsToo(context: Context): Promise<void> {
  const { kube } = context
  const before = await kube.secret(`${release}-ca`, 'tls.crt')
  await kube.helm(4, ...helmArguments('install'), '--wait')
  assert.ok(before.equals(await kube.secret(`${release}-ca`, 'tls.crt')))
  await allTokensEqualTheEmbeddedOnes(context)
  await kube.helm(4, 'uninstall', release, '--wait')
}
