import { setTimeout as sleep } from 'node:timers/promises'
import type { KubernetesApi, Pod } from './api.ts'

/** A pod of the cluster was told to end, or is gone. Its address is its node's. */
export type Leaving = { readonly podName: string; readonly ip: string; readonly kind: 'told' | 'gone' }

/**
 * Tells of pods that go, once for each of the two moments. Who is alive is decided by leases in the store; this only
 * says a few seconds earlier where to look. So what a broken watch misses does no harm, nothing is listed again, and
 * the loop ends only with the signal.
 */
export async function watchLeavings(
  api: Pick<KubernetesApi, 'watchPods'>,
  selector: string,
  onLeaving: (leaving: Leaving) => void,
  report: (error: Error) => void,
  signal: AbortSignal,
  retryMs: { readonly first: number; readonly most: number } = { first: 1000, most: 30_000 },
): Promise<void> {
  // Uids of pods that were told to end; each leaves the set when it is gone, so it is never larger than the cluster.
  const told = new Set<string>()
  let waitMs = retryMs.first
  while (!signal.aborted) {
    try {
      await api.watchPods(
        selector,
        ({ kind, pod }) => {
          waitMs = retryMs.first
          if (kind === 'gone') {
            told.delete(pod.uid)
            onLeaving(leaving(pod, 'gone'))
          } else if (pod.isLeaving && !told.has(pod.uid)) {
            told.add(pod.uid)
            onLeaving(leaving(pod, 'told'))
          }
        },
        signal,
      )
      waitMs = retryMs.first // it ended as it should
    } catch (thrown) {
      report(thrown instanceof Error ? thrown : new Error(String(thrown)))
    }
    await sleep(waitMs, undefined, { signal, ref: false }).catch(() => {}) // aborted: the loop ends
    waitMs = Math.min(retryMs.most, waitMs * 2)
  }
}

function leaving(pod: Pod, kind: Leaving['kind']): Leaving {
  return { podName: pod.name, ip: pod.ip, kind }
}
