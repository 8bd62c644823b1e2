import { MoeshError } from '../config/errors.ts'
import type { Explanation } from './autoscaler.ts'

/** What is read of a pod. */
export type Pod = {
  readonly uid: string
  readonly name: string
  /** Empty until it has one. */
  readonly ip: string
  readonly owner: string
  /** Its label `app.kubernetes.io/component`. */
  readonly component: string
  readonly isReady: boolean
  readonly isLeaving: boolean
  readonly unschedulable: { readonly why: string; readonly sinceMs: number } | null
}

export type PodChange = { readonly kind: 'seen' | 'gone'; readonly pod: Pod }

/** The few things that are asked of Kubernetes. Errors: KUBERNETES_UNREACHABLE with the server's reason. */
export interface KubernetesApi {
  replicas(statefulSet: string): Promise<number>
  /** Refused if somebody has scaled meanwhile: it holds only while the number is still `from`. */
  scale(statefulSet: string, from: number, to: number): Promise<void>
  /** As an Event of the StatefulSet. */
  explain(statefulSet: string, explanation: Explanation): Promise<void>
  pods(selector: string): Promise<readonly Pod[]>
  /** Settles when the server ends the watch (it does so every few minutes) or the signal aborts. */
  watchPods(selector: string, onChange: (change: PodChange) => void, signal: AbortSignal): Promise<void>
  /** The node's label `topology.kubernetes.io/zone`. */
  zoneOf(node: string): Promise<string | undefined>
}

/**
 * The real one, with the pod's own service account. The client library is loaded here and not at the top: it takes most
 * of a second and 20 MB that a process without Kubernetes should not pay.
 */
export async function connectKubernetes(namespace: string): Promise<KubernetesApi> {
  const k8s = await import('@kubernetes/client-node')
  const config = new k8s.KubeConfig()
  try {
    config.loadFromCluster()
  } catch (cause) {
    throw unreachable('no service account in this pod', cause)
  }
  const apps = config.makeApiClient(k8s.AppsV1Api)
  const core = config.makeApiClient(k8s.CoreV1Api)
  const watch = new k8s.Watch(config)
  const jsonPatch = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.JsonPatch)
  const readScale = (name: string) => asked(apps.readNamespacedStatefulSetScale({ name, namespace }))

  return {
    replicas: async (name) => (await readScale(name)).spec?.replicas ?? 0,

    scale: async (name, from, to) => {
      const body = [
        { op: 'test', path: '/spec/replicas', value: from },
        { op: 'replace', path: '/spec/replicas', value: to },
      ]
      await asked(apps.patchNamespacedStatefulSetScale({ name, namespace, body }, jsonPatch))
    },

    explain: async (name, { type, reason, message }) => {
      // Tools find an object's Events by its uid.
      const uid = (await readScale(name)).metadata?.uid
      const time = new Date()
      const body = {
        metadata: { generateName: `${name}.`, namespace },
        involvedObject: {
          apiVersion: 'apps/v1',
          kind: 'StatefulSet',
          name,
          namespace,
          ...(uid === undefined ? {} : { uid }),
        },
        type,
        reason,
        message: message.slice(0, 1024), // what the server takes
        source: { component: 'moesh' },
        firstTimestamp: time,
        lastTimestamp: time,
        count: 1,
      }
      await asked(core.createNamespacedEvent({ namespace, body }))
    },

    pods: async (labelSelector) => {
      const list = await asked(core.listNamespacedPod({ namespace, labelSelector, limit: podsMax }))
      return list.items.map(readPod)
    },

    watchPods: (labelSelector, onChange, signal) =>
      new Promise<void>((resolve, reject) => {
        const path = `/api/v1/namespaces/${namespace}/pods`
        const started = watch.watch(
          path,
          { labelSelector, timeoutSeconds: watchSeconds },
          (phase: string, pod: unknown) => {
            if (phase === 'ADDED' || phase === 'MODIFIED') onChange({ kind: 'seen', pod: readPod(pod) })
            if (phase === 'DELETED') onChange({ kind: 'gone', pod: readPod(pod) })
          },
          (error: unknown) =>
            error == null || signal.aborted ? resolve() : reject(unreachable('the watch of pods broke', error)),
        )
        started.then(
          (request) => {
            if (signal.aborted) request.abort()
            else signal.addEventListener('abort', () => request.abort(), { once: true })
          },
          (cause: unknown) => reject(unreachable('pods can not be watched', cause)),
        )
      }),

    zoneOf: async (name) => (await asked(core.readNode({ name }))).metadata?.labels?.['topology.kubernetes.io/zone'],
  }
}

/** After so long the server ends a watch and the next one begins: the client takes 30 s of silence for a broken one. */
const watchSeconds = 25

/** More pods of one cluster than this are not looked at. */
const podsMax = 5000

type RawPod = {
  metadata?: {
    uid?: string
    name?: string
    labels?: Readonly<Record<string, string>>
    deletionTimestamp?: unknown
    ownerReferences?: readonly { kind: string; name: string }[]
  }
  status?: {
    podIP?: string
    conditions?: readonly {
      type: string
      status: string
      reason?: string
      message?: string
      lastTransitionTime?: string | Date
    }[]
  }
}

/** From the client's classes or, in a watch, from plain JSON: the same fields. What is missing is not ready. */
export function readPod(raw: unknown): Pod {
  const { metadata = {}, status = {} } = (typeof raw === 'object' && raw !== null ? raw : {}) as RawPod
  const condition = (type: string) => status.conditions?.find((each) => each.type === type)
  const scheduled = condition('PodScheduled')
  const isStuck = scheduled?.status === 'False' && scheduled.reason === 'Unschedulable'
  return {
    uid: metadata.uid ?? '',
    name: metadata.name ?? '',
    ip: status.podIP ?? '',
    owner: metadata.ownerReferences?.[0]?.name ?? '',
    component: metadata.labels?.['app.kubernetes.io/component'] ?? '',
    isReady: condition('Ready')?.status === 'True',
    isLeaving: metadata.deletionTimestamp !== undefined && metadata.deletionTimestamp !== null,
    unschedulable: isStuck
      ? { why: scheduled.message ?? 'no reason given', sinceMs: new Date(scheduled.lastTransitionTime ?? 0).getTime() }
      : null,
  }
}

/** An API server that takes longer does not answer any more. */
const answerMsMax = 20_000

async function asked<T>(answer: Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error(`no answer within ${answerMsMax / 1000} s`)), answerMsMax)
  try {
    return await Promise.race([answer, late])
  } catch (cause) {
    throw unreachable(cause instanceof Error ? (cause.message.split('\n')[0] ?? '') : String(cause), cause)
  } finally {
    clearTimeout(timer)
  }
}

function unreachable(why: string, cause: unknown): MoeshError {
  const hint = 'check that the API server can be reached and that the service account has the rights of the chart'
  return new MoeshError('KUBERNETES_UNREACHABLE', `Kubernetes did not do it: ${why}`, hint, { cause })
}
