import { Client, type ServiceError, status } from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import { z } from 'zod'
import type { Controller } from '../cluster/controller.ts'
import { countHeld, decodeHeld } from '../cluster/held.ts'
import type { Membership } from '../cluster/membership.ts'
import type { Store } from '../cluster/store.ts'
import { MoeshError } from '../config/errors.ts'
import type { Security } from '../config/tls.ts'
import { loadProtos, serviceDefinition } from './api/protos.ts'
import type { RebalanceReport } from './cluster-view.ts'
import type { LeaderCalls } from './store-view.ts'

export type ClusterCallsOptions = {
  self: string
  store: Store
  security: Security
  membership: () => Membership
  controller: () => Controller
}

/** A drain that moves nothing for so long is told to its caller; the node stays marked. */
const drainStallMs = 60_000
const lookEveryMs = 100
const forwardMs = 30_000

/** What operators ask for. Any coordinator takes it; what only the leader may do goes on to the leader. */
export function clusterCalls(options: ClusterCallsOptions): LeaderCalls {
  const { store, membership, controller, self } = options

  const heldBy = (node: string) => {
    const held = membership().view().nodes.get(node)?.status.held
    return held ? countHeld(decodeHeld(held)) : 0
  }
  const known = (node: string) => {
    const entry = membership().view().nodes.get(node)
    if (entry?.record.role === 'expert') return
    const names = [...membership().view().nodes.values()]
      .filter(({ record }) => record.role === 'expert')
      .map(({ record }) => record.id)
    throw new MoeshError('NODE_UNKNOWN', `there is no expert node "${node}"`, `there is ${names.join(', ') || 'none'}`)
  }

  return {
    drain: async (node) => {
      known(node)
      const others = [...membership().view().nodes.values()].filter(
        ({ record, status: { state } }) =>
          record.role === 'expert' &&
          record.id !== node &&
          state !== 'leaving' &&
          !membership().view().drained.has(record.id),
      )
      if (others.length === 0) {
        throw new MoeshError('NO_OTHER_NODE', `${node} is the only expert node`, 'start another one first')
      }
      const before = heldBy(node)
      await store.setDrained(node, 'operator')
      controller().poke()
      let left = before
      for (let quietMs = 0; left > 0 && quietMs < drainStallMs; quietMs += lookEveryMs) {
        await new Promise((resolve) => setTimeout(resolve, lookEveryMs))
        if (heldBy(node) < left) quietMs = 0
        left = heldBy(node)
      }
      if (left > 0) {
        throw new MoeshError(
          'DRAIN_STALLED',
          `${left} shards are still on ${node}`,
          'the other nodes may lack memory: see "moesh status"; the drain goes on',
        )
      }
      return { moved: before }
    },
    undrain: async (node) => {
      const { drained, suspended } = membership().view()
      if (!drained.has(node) && !suspended.has(node)) known(node)
      await store.setDrained(node, null)
      // Whoever takes a node back has looked at it: an audit's verdict ends with it.
      await store.setSuspended(node, null)
      controller().poke()
    },
    rebalance: async ({ dryRun }) => {
      const leader = membership().view().leader
      if (!dryRun && !controller().isLeader()) {
        if (leader === null || leader.id === self) {
          throw new MoeshError('NOT_LEADER', 'no coordinator leads the cluster at the moment', 'try again')
        }
        return rebalanceReply.parse(
          await forward(options, leader.id, 'moesh.v1.Cluster/Rebalance', { dry_run: dryRun }),
        )
      }
      const { plan, ...outcome } = await controller().rebalance(dryRun)
      return { moves: plan.moves, ...outcome }
    },
    cancelElsewhere: async (requestId) => {
      const entry = await store.journalGet(requestId)
      if (entry === null || entry.owner === self) return false
      try {
        await forward(options, entry.owner, 'moesh.v1.Inference/Cancel', { request_id: requestId })
        return true
      } catch (thrown) {
        if (isServiceError(thrown) && thrown.code === status.NOT_FOUND) return false
        throw thrown
      }
    },
  }
}

const rebalanceReply = z
  .object({
    moves: z.array(
      z.object({ layer: z.number(), expert: z.number(), from: z.string(), to: z.string(), why: z.string() }),
    ),
    balancedness_before: z.number(),
    balancedness_after: z.number(),
    bytes: z.coerce.number(),
    epoch: z.coerce.number(),
  })
  .transform(
    ({ moves, balancedness_before, balancedness_after, bytes, epoch }): RebalanceReport => ({
      moves,
      balancednessBefore: balancedness_before,
      balancednessAfter: balancedness_after,
      bytes,
      epoch,
    }),
  )

function forward(
  { membership, security }: ClusterCallsOptions,
  coordinator: string,
  method: string,
  request: object,
): Promise<unknown> {
  const record = membership().view().nodes.get(coordinator)?.record
  if (record === undefined) {
    throw new MoeshError('NODE_LOST', `the coordinator ${coordinator} is not there`, 'try again in a moment')
  }
  const [service = '', name = ''] = method.split('/')
  const definition = serviceDefinition(loadProtos(), service)[name] as MethodDefinition<object, object>
  const { credentials, options } = security.dial('coordinator')
  const client = new Client(record.address, credentials, options)
  const { path, requestSerialize, responseDeserialize } = definition
  const deadline = Date.now() + forwardMs
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, { deadline }, (error, response) => {
      client.close()
      if (error) reject(error)
      else resolve(response)
    })
  })
}

function isServiceError(thrown: unknown): thrown is ServiceError {
  return thrown instanceof Error && 'code' in thrown && 'details' in thrown
}
