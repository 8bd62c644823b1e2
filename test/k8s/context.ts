import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ChannelCredentials } from '@grpc/grpc-js'
import { MoeshClient, type Prompt } from './client.ts'
import { repository, start } from './kit.ts'
import { type Kube, until } from './kube.ts'

export const release = 'moesh'
export const chart = join(repository, 'helm/moesh')
const valuesFile = join(repository, 'test/k8s/values.yaml')

/** Eight unlike requests; the tokens of each depend on its text and seed alone. */
export const prompts: readonly Prompt[] = [
  'Once upon a time',
  'The old lighthouse keeper',
  'In the middle of the forest there stood',
  '"I shall not go," said the',
  'When the clock struck twelve',
  'There were three brothers who',
  'The ship had been at sea for',
  'Nobody in the village knew',
].map((text, index) => ({ text, seed: 1000 + index, maxTokens: 96 }))

export type Context = {
  readonly env: NodeJS.ProcessEnv
  readonly kube: Kube
  /** Tokens of every prompt, from the embedded form on this machine. */
  readonly reference: readonly (readonly number[])[]
  /** A number for the report, with its unit in the name. */
  measured(what: string, value: number | string): void
}

/** `helm install` and `helm upgrade` with the test's values and those given. */
export function helmArguments(verb: 'install' | 'upgrade', ...sets: string[]): string[] {
  // What --set does not know for a whole number or a boolean is text to it, 0.5 too.
  const flag = (set: string) => (/=\d+\.\d+$/.test(set) ? '--set-json' : '--set')
  return [verb, release, chart, '-f', valuesFile, '--timeout', '5m', ...sets.flatMap((set) => [flag(set), set])]
}

/** Through the Service, with the certificate that the chart made for clients. */
export async function connect({ kube }: Context): Promise<MoeshClient> {
  const service = await kube.get('service', release)
  const address = `${String(service.spec?.clusterIP)}:50051`
  const part = (key: string) => kube.secret(`${release}-client-tls`, key)
  const credentials = ChannelCredentials.createSsl(await part('ca.crt'), await part('tls.key'), await part('tls.crt'))
  return MoeshClient.open(address, credentials, { 'grpc.ssl_target_name_override': `${release}.${kube.namespace}.svc` })
}

/** The same requests to everything in one process, without Kubernetes, Redis or a network. */
export async function embeddedTokens(): Promise<readonly (readonly number[])[]> {
  const folder = await mkdtemp(join(tmpdir(), 'moesh-k8s-'))
  const readyFile = join(folder, 'ready.json')
  const main = join(repository, 'services/cli/main.ts')
  const options = ['--grpc', '127.0.0.1:0', '--ranks', '2', '--ready-file', readyFile, '--cache', join(folder, 'cache')]
  const server = start(process.execPath, [main, 'serve', ...options], process.env)
  try {
    let address = ''
    await until(
      'the embedded server is ready',
      async () => {
        const text = await readFile(readyFile, 'utf8').catch(() => undefined)
        if (text !== undefined) address = (JSON.parse(text) as { grpc: string }).grpc
        return address !== ''
      },
      120_000,
    )
    const client = await MoeshClient.open(address, ChannelCredentials.createInsecure())
    const generated = await Promise.all(prompts.map((prompt, index) => client.generate(prompt, `embedded-${index}`)))
    client.close()
    return generated.map(({ tokens }) => tokens)
  } finally {
    await server.stop()
    await rm(folder, { recursive: true, force: true })
  }
}
