import { type LayerRoutes, nobody } from './route.ts'

/** Experts' rows cut by the nodes that shall compute them; those of an expert follow each other, experts ascend. */
export type Pieces = {
  readonly count: number
  readonly node: Int32Array
  readonly expert: Int32Array
  readonly rows: Int32Array
}

/**
 * Up to so many rows an expert takes as long as one of them, since its weights have to be read: such an expert stays
 * whole, and costs the same wherever it goes.
 */
export const readingRows = 8

/**
 * Moves whole experts of few rows, one at a time, from the busiest node to where the step ends soonest, as long as that
 * gets better. Shares are kept over many steps where nothing is to be gained: a move must make the busiest node less busy.
 * `nodeCosts` is scratch with a place for every node at least.
 */
export function levelNodes(
  pieces: Pieces,
  nodeCosts: Float64Array,
  layer: LayerRoutes,
  nodeRanks: Float64Array,
  avoid: Uint8Array,
): void {
  const nodes = nodeRanks.length
  nodeCosts.fill(0)
  for (let piece = 0; piece < pieces.count; piece++) {
    const node = pieces.node[piece] ?? nobody
    if (node !== nobody) nodeCosts[node] = (nodeCosts[node] ?? 0) + costOf(pieces, piece, nodeRanks, node)
  }
  for (;;) {
    let busiest = 0
    for (let node = 1; node < nodes; node++) {
      if ((nodeCosts[node] ?? 0) > (nodeCosts[busiest] ?? 0)) busiest = node
    }
    let moved = -1
    let target = -1
    let lowest = nodeCosts[busiest] ?? 0
    for (let piece = 0; piece < pieces.count; piece++) {
      if (pieces.node[piece] !== busiest || !staysWhole(pieces, piece)) continue
      const expert = pieces.expert[piece] ?? 0
      for (let copy = layer.starts[expert] ?? 0; copy < (layer.starts[expert + 1] ?? 0); copy++) {
        const node = layer.nodes[copy] ?? 0
        if (node === busiest || (layer.weights[copy] ?? 0) === 0) continue
        if ((avoid[node] ?? 0) > (avoid[busiest] ?? 0)) continue
        const after = (nodeCosts[node] ?? 0) + costOf(pieces, piece, nodeRanks, node)
        if (after >= lowest) continue
        lowest = after
        moved = piece
        target = node
      }
    }
    if (moved < 0) return
    nodeCosts[busiest] = (nodeCosts[busiest] ?? 0) - costOf(pieces, moved, nodeRanks, busiest)
    nodeCosts[target] = lowest
    pieces.node[moved] = target
  }
}

function costOf(pieces: Pieces, piece: number, nodeRanks: Float64Array, node: number): number {
  return Math.max(pieces.rows[piece] ?? 0, readingRows) / (nodeRanks[node] ?? 1)
}

/** Few rows, and all of the expert's; pieces of an expert follow each other. */
function staysWhole(pieces: Pieces, piece: number): boolean {
  const expert = pieces.expert[piece]
  const before = piece > 0 && pieces.expert[piece - 1] === expert
  const after = piece + 1 < pieces.count && pieces.expert[piece + 1] === expert
  return (pieces.rows[piece] ?? 0) <= readingRows && !before && !after
}
