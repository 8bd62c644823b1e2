import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { ChannelCredentials, status } from '@grpc/grpc-js'
import { Authority } from '../../config/authority.ts'
import { MoeshClient, type Prompt } from '../client.ts'
import { type Context, helmArguments, release } from '../context.ts'
import { podAddress, until } from '../kube.ts'

const prompt: Prompt = { text: 'x', seed: 1, maxTokens: 1 }
const override = { 'grpc.ssl_target_name_override': 'coordinator.moesh.internal' }

/** Without NetworkPolicies, so that certificates are all that stands in the way. */
export async function wrongCertificatesGetInNowhere(context: Context): Promise<void> {
  const { kube } = context
  const folder = await mkdtemp(join(tmpdir(), 'moesh-stranger-'))
  await kube.helm(3, ...helmArguments('upgrade', 'networkPolicy.enabled=false'), '--wait')
  try {
    const foreign = new Authority(folder).issue('client', [
      'DNS:client.moesh.internal',
      'DNS:coordinator.moesh.internal',
    ])
    const pair = { cert: readFileSync(foreign.certFile), key: readFileSync(foreign.keyFile) }
    const pods = [...(await kube.pods('coordinator')), ...(await kube.pods('expert')), ...(await kube.pods('redis'))]
    for (const pod of pods) {
      const port = pod.metadata.name.startsWith(`${release}-redis`) ? 6379 : 50_051
      for (const [what, options] of [
        ['no certificate', {}],
        ['one of another authority', pair],
      ] as const) {
        const answered = await speaks(podAddress(pod), port, options)
        assert.equal(answered, false, `${pod.metadata.name}:${port} answers to ${what}`)
      }
    }
    await wrongRoleIsRefused(context)
    await healthPortServesHealthOnly(context)
    await metricsPortTellsMetricsOnly(context)
  } finally {
    await kube.helm(3, ...helmArguments('upgrade'), '--wait')
    await rm(folder, { recursive: true, force: true })
  }
}

async function wrongRoleIsRefused({ kube }: Context): Promise<void> {
  const part = (key: string) => kube.secret(`${release}-expert-tls`, key)
  const credentials = ChannelCredentials.createSsl(await part('ca.crt'), await part('tls.key'), await part('tls.crt'))
  const [coordinator] = await kube.pods('coordinator')
  assert.ok(coordinator)
  const client = await MoeshClient.open(`${podAddress(coordinator)}:50051`, credentials, override)
  await assert.rejects(client.generate(prompt, 'wrong-role'), { code: status.PERMISSION_DENIED })
  client.close()
}

async function healthPortServesHealthOnly({ kube }: Context): Promise<void> {
  const [coordinator] = await kube.pods('coordinator')
  assert.ok(coordinator)
  const client = await MoeshClient.open(`${podAddress(coordinator)}:50052`, ChannelCredentials.createInsecure())
  await assert.rejects(client.generate(prompt, 'health-port'), { code: status.UNIMPLEMENTED })
  client.close()
}

async function metricsPortTellsMetricsOnly({ kube }: Context): Promise<void> {
  for (const [role, metric] of [
    ['coordinator', 'moesh_requests_running'],
    ['expert', 'moesh_expert_busy_ratio'],
  ] as const) {
    const [pod] = await kube.pods(role)
    assert.ok(pod)
    const asked = (path: string, method: string) => fetch(`http://${podAddress(pod)}:50053${path}`, { method })
    const told = await asked('/metrics', 'GET')
    assert.match(await told.text(), new RegExp(`^${metric} [0-9.e-]+$`, 'm'))
    assert.equal((await asked('/metrics', 'POST')).status, 405)
    assert.equal((await asked('/', 'GET')).status, 404)
  }
}

/** Whether the server sends anything after the handshake: with TLS 1.3 it refuses a client's certificate only then. */
function speaks(host: string, port: number, options: tls.ConnectionOptions): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = tls.connect({
      host,
      port,
      ALPNProtocols: ['h2'],
      rejectUnauthorized: false,
      timeout: 5000,
      ...options,
    })
    const end = (hasAnswered: boolean) => {
      socket.destroy()
      resolve(hasAnswered)
    }
    if (port === 6379) socket.on('secureConnect', () => socket.write('PING\r\n'))
    socket.on('data', () => end(true))
    socket.on('error', () => end(false))
    socket.on('close', () => end(false))
    socket.on('timeout', () => end(false))
  })
}

export async function aStrangersPodReachesNoPort({ kube }: Context): Promise<void> {
  const name = 'stranger'
  const addresses = [...(await kube.pods('coordinator')), ...(await kube.pods('expert'))]
    .flatMap((pod) => [50051, 50052, 50053].map((port) => `${podAddress(pod)}:${port}`))
    .concat(`${release}-redis:6379`)
  await kube.apply({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name },
    spec: {
      restartPolicy: 'Never',
      automountServiceAccountToken: false,
      containers: [
        { name, image: 'localhost/moesh:dev', imagePullPolicy: 'Never', command: ['node', '-e', reach, ...addresses] },
      ],
    },
  })
  try {
    const phase = async () => String((await kube.get('pod', name)).status?.phase)
    await until('the stranger has tried', async () => ['Succeeded', 'Failed'].includes(await phase()), 120_000)
    const { stdout } = await kube.kubectl('logs', name)
    assert.equal(stdout, '', `a stranger's pod reaches ${stdout}`)
    assert.equal(await phase(), 'Succeeded')
  } finally {
    await kube.kubectl('delete', 'pod', name, '--grace-period=0', '--force')
  }
}

/** Prints the addresses that it can connect to. New pods are covered by policies a moment late, so it waits first. */
const reach = `
setTimeout(() => {
  for (const address of process.argv.slice(1)) {
    const [host, port] = address.split(':')
    const socket = require('node:net').connect({ host, port, timeout: 5000 }, () => { console.log(address); socket.destroy() })
    socket.on('timeout', () => socket.destroy()).on('error', () => {})
  }
}, 3000)`
