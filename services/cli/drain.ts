import { z } from 'zod'
import type { OptionsOf } from '../config/options.ts'
import { ApiClient } from './client.ts'

const drained = z.object({ moved: z.number() })

/** `moesh drain NODE`: returns when the node is empty. */
export async function runDrain(node: string, options: OptionsOf<'drain'>): Promise<void> {
  const client = await ApiClient.open(options)
  try {
    const { moved } = drained.parse(await client.call('moesh.v1.Cluster/Drain', { node }))
    process.stdout.write(
      options.json
        ? `${JSON.stringify({ node, moved })}\n`
        : `${node} is empty: ${moved} shards were copied elsewhere first; "moesh undrain ${node}" takes it back\n`,
    )
  } finally {
    client.close()
  }
}

/** `moesh undrain NODE`. */
export async function runUndrain(node: string, options: OptionsOf<'undrain'>): Promise<void> {
  const client = await ApiClient.open(options)
  try {
    await client.call('moesh.v1.Cluster/Undrain', { node })
    process.stdout.write(options.json ? `${JSON.stringify({ node })}\n` : `${node} may hold experts again\n`)
  } finally {
    client.close()
  }
}
