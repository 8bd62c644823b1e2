import { expect, test } from 'vitest'
import { encodeHeld } from '../../services/cluster/held.ts'
import { emptyStatus, type NodeEntry } from '../../services/cluster/node.ts'
import type { Placement } from '../../services/cluster/placement.ts'
import { clusterRoutes } from '../../services/coordinator/cluster-routes.ts'

const layers = [{ layer: 0, experts: 2 }]
const noFallback = { nodeId: 'coordinator', held: new Map() }

function node(id: string, experts: number[], ranks = 1): [string, NodeEntry] {
  const record: NodeEntry['record'] = {
    id,
    incarnation: '1',
    role: 'expert',
    address: 'nowhere:1',
    zone: '',
    memoryBytes: 0,
    ranks,
    provider: 'cpu',
    numerics: 'n',
    protocolVersion: 1,
    version: '0',
    modelDigest: '',
  }
  const held = encodeHeld(new Map([[0, new Set(experts)]]))
  return [id, { record, status: { ...emptyStatus, state: 'ready', held } }]
}

/** By expert: node index of `nodes`, weight, … */
function placement(nodes: string[], experts: number[][]): Placement {
  const rest = { token: 1, modelDigest: 'm', numerics: 'n', createdUnixMs: 0, why: '' }
  return { epoch: 7, nodes, layers: [{ layer: 0, experts }], ...rest }
}

test('a placed copy without a share may still relieve others; one that is not placed gets no rows', () => {
  const view = {
    nodes: new Map([node('a', [0, 1]), node('b', [0, 1], 4), node('c', [0])]),
    suspended: new Map<string, string>(),
  }
  const active = placement(
    ['a', 'b'],
    [
      [0, 65536, 1, 0],
      [0, 65536, 1, 0],
    ],
  )
  const { nodeIds, nodeRanks, layers: routes } = clusterRoutes(layers, view, active, 'n', 'm', noFallback)
  expect(nodeIds).toEqual(['a', 'b', 'c'])
  expect([...nodeRanks]).toEqual([1, 4, 1])
  expect([...(routes.get(0)?.weights ?? [])]).toEqual([65536, 1, 0, 65536, 1])
})

test('where no copy is placed, all that live share alike', () => {
  const view = { nodes: new Map([node('a', [0]), node('b', [0])]), suspended: new Map<string, string>() }
  const { layers: routes } = clusterRoutes(layers, view, null, 'n', 'm', noFallback)
  expect([...(routes.get(0)?.weights ?? [])]).toEqual([1, 1])
})
