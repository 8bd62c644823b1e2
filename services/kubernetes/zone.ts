import type { KubernetesApi } from './api.ts'

const prefix = 'kubernetes://'

/**
 * `--zone kubernetes://NODE` stands for the zone of that Kubernetes node; any other value is the zone itself, an empty
 * one is none. An API server that does not answer must not keep a pod from starting: without a zone it only takes part
 * in no spreading, so that is reported and goes on.
 */
export async function resolveZone(
  zone: string | undefined,
  connect: () => Promise<Pick<KubernetesApi, 'zoneOf'>>,
  report: (error: Error) => void,
): Promise<string | undefined> {
  if (zone === undefined || zone === '') return undefined
  if (!zone.startsWith(prefix)) return zone
  try {
    return await (await connect()).zoneOf(zone.slice(prefix.length))
  } catch (thrown) {
    report(thrown instanceof Error ? thrown : new Error(String(thrown)))
    return undefined
  }
}
