import { setTimeout as sleep } from 'node:timers/promises'
import { type Output, run } from './kit.ts'

export type KubeObject = {
  readonly kind?: string
  readonly metadata: {
    readonly name: string
    readonly uid?: string
    readonly labels?: Readonly<Record<string, string>>
  }
  readonly spec?: Readonly<Record<string, unknown>>
  readonly status?: Readonly<Record<string, unknown>>
  readonly data?: Readonly<Record<string, string>>
  readonly [more: string]: unknown
}

/** kubectl in one namespace. */
export class Kube {
  readonly #env: NodeJS.ProcessEnv
  readonly namespace: string

  constructor(env: NodeJS.ProcessEnv, namespace: string) {
    this.#env = env
    this.namespace = namespace
  }

  kubectl(...args: string[]): Promise<Output> {
    return run('kubectl', ['-n', this.namespace, ...args], { env: this.#env })
  }

  /** Its status is the caller's to judge. */
  attempt(...args: string[]): Promise<Output> {
    return run('kubectl', ['-n', this.namespace, ...args], { env: this.#env, isChecked: false })
  }

  async apply(object: object): Promise<void> {
    const input = JSON.stringify(object)
    await run('kubectl', ['-n', this.namespace, 'apply', '-f', '-'], { env: this.#env, input })
  }

  async get(kind: string, name: string): Promise<KubeObject> {
    return JSON.parse((await this.kubectl('get', kind, name, '-o', 'json')).stdout)
  }

  async list(kind: string, selector = ''): Promise<readonly KubeObject[]> {
    const found = await this.kubectl('get', kind, '-o', 'json', ...(selector === '' ? [] : ['-l', selector]))
    return JSON.parse(found.stdout).items
  }

  async pods(component: string): Promise<readonly KubeObject[]> {
    return this.list('pods', `app.kubernetes.io/component=${component}`)
  }

  async secret(name: string, key: string): Promise<Buffer> {
    const encoded = (await this.get('secret', name)).data?.[key]
    if (encoded === undefined) throw new Error(`secret ${name} has no ${key}`)
    return Buffer.from(encoded, 'base64')
  }

  /** Reasons of the events of an object, oldest first. */
  async eventsOf(name: string): Promise<readonly { reason: string; message: string }[]> {
    const events = await this.list('events')
    return events
      .filter((event) => (event.involvedObject as { name?: string } | undefined)?.name === name)
      .map((event) => ({ reason: String(event.reason), message: String(event.message) }))
  }

  rollout(workload: string): Promise<Output> {
    return run('kubectl', ['-n', this.namespace, 'rollout', 'status', workload, '--timeout=300s'], {
      env: this.#env,
      timeoutMs: 310_000,
    })
  }

  helm(version: 3 | 4, ...args: string[]): Promise<Output> {
    return run(`helm${version}`, ['-n', this.namespace, ...args], { env: this.#env, timeoutMs: 600_000 })
  }

  attemptHelm(version: 3 | 4, ...args: string[]): Promise<Output> {
    return run(`helm${version}`, ['-n', this.namespace, ...args], {
      env: this.#env,
      isChecked: false,
      timeoutMs: 600_000,
    })
  }
}

export function isReady(pod: KubeObject): boolean {
  const conditions = (pod.status?.conditions ?? []) as readonly { type: string; status: string }[]
  return conditions.some(({ type, status }) => type === 'Ready' && status === 'True')
}

export function podAddress(pod: KubeObject): string {
  return String(pod.status?.podIP ?? '')
}

/** Milliseconds until it was so. */
export async function until(what: string, isSo: () => Promise<boolean>, withinMs: number): Promise<number> {
  const from = performance.now()
  while (!(await isSo())) {
    if (performance.now() - from > withinMs) throw new Error(`not within ${withinMs / 1000} s: ${what}`)
    await sleep(250)
  }
  return performance.now() - from
}
