import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'

const seconds = z.number().nonnegative().max(86_400)
const share = z.number().positive().max(1)
const replicas = z.int().min(1).max(10_000)

export const policySchema = z
  .strictObject({
    /** Add a pod above this mean share of the ranks' time, remove one if the others would stay below `busyLow`. */
    busyHigh: share,
    busyLow: share,
    /** Rows wait so long before they are computed. */
    queueMsHigh: z.number().positive(),
    /** Share of the group's memory that shards take. */
    memoryHigh: share,
    upAfterSeconds: seconds,
    downAfterSeconds: seconds,
    coolDownSeconds: seconds,
    drainSeconds: seconds,
  })
  .refine((policy) => policy.busyLow < policy.busyHigh, 'busyLow must be less than busyHigh')

export const groupSchema = z
  .strictObject({
    name: z.string().min(1).max(63),
    statefulSet: z.string().min(1).max(63),
    minReplicas: replicas,
    maxReplicas: replicas,
  })
  .refine((group) => group.minReplicas <= group.maxReplicas, 'minReplicas must not be more than maxReplicas')

/** What `--kubernetes FILE` holds; the Helm chart writes it (templates/kubernetes-config.yaml). */
export const settingsSchema = z.strictObject({
  namespace: z.string().min(1).max(63),
  /** Label selector of this cluster's pods. */
  podSelector: z.string().min(1),
  /** Whether deletions of pods are told as they happen. */
  hints: z.boolean(),
  /** The expert groups that the leader may scale. */
  groups: z.array(groupSchema).max(64),
  policy: policySchema,
})

export type ScalePolicy = z.infer<typeof policySchema>
export type ScaledGroup = z.infer<typeof groupSchema>
export type KubernetesSettings = z.infer<typeof settingsSchema>

/** Errors: USAGE. */
export async function readKubernetesSettings(file: string): Promise<KubernetesSettings> {
  let value: unknown
  try {
    value = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    throw new MoeshError('USAGE', `--kubernetes: ${file} cannot be read as JSON`, 'check the path', { cause })
  }
  const parsed = settingsSchema.safeParse(value)
  if (!parsed.success) throw new MoeshError('USAGE', `--kubernetes: ${file}: ${z.prettifyError(parsed.error)}`)
  return parsed.data
}
