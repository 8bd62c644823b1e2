import { MoeshError } from '../config/errors.ts'
import { levelNodes, readingRows } from './level-nodes.ts'
import { type LayerRoutes, nobody, type RouteTable } from './route.ts'
import type { RoutedRows } from './transport.ts'

/**
 * A layer's rows by node: the result of `groupRows`, in arrays that are kept and grow. Group g goes to node
 * `groupNode[g]` and has the entries entryStart[g] … entryStart[g + 1] - 1, ascending by expert. Entry i wants expert
 * `entryExpert[i]` for the rows rowIndices[rowStart[i] … rowStart[i + 1] - 1]; output rows stand in the same order, so
 * each group and each entry owns one contiguous range of them.
 */
export class RowGroups {
  groupCount = 0
  entryCount = 0
  pairCount = 0
  groupNode = new Int32Array(0)
  entryStart = new Int32Array(1)
  entryExpert = new Int32Array(0)
  entryRows = new Int32Array(0)
  rowStart = new Int32Array(1)
  rowIndices = new Int32Array(0)

  /** Rows that each expert of the layer gets; [experts], longer arrays end with leftovers. */
  expertRows = new Int32Array(0)
  /** Pieces of experts before they are sorted by node; those of an expert follow each other. */
  readonly pieces = {
    count: 0,
    node: new Int32Array(0),
    expert: new Int32Array(0),
    rows: new Int32Array(0),
    next: new Int32Array(0),
  }
  /** The piece that an expert's next row goes to. */
  expertPiece = new Int32Array(0)
  nodeEntries = new Int32Array(0)
  /** What each node's pieces cost, over its ranks; see `levelNodes`. */
  nodeCosts = new Float64Array(0)

  reserve(nodes: number, experts: number, copies: number, pairs: number): void {
    const entries = copies + experts
    if (this.groupNode.length < nodes + 1) {
      this.groupNode = new Int32Array(nodes + 1)
      this.entryStart = new Int32Array(nodes + 2)
      this.nodeEntries = new Int32Array(nodes + 1)
      this.nodeCosts = new Float64Array(nodes)
    }
    if (this.expertRows.length < experts) {
      this.expertRows = new Int32Array(experts)
      this.expertPiece = new Int32Array(experts)
    }
    if (this.entryExpert.length < entries) {
      this.entryExpert = new Int32Array(entries)
      this.entryRows = new Int32Array(entries)
      this.rowStart = new Int32Array(entries + 1)
      const { pieces } = this
      pieces.node = new Int32Array(entries)
      pieces.expert = new Int32Array(entries)
      pieces.rows = new Int32Array(entries)
      pieces.next = new Int32Array(entries)
    }
    if (this.rowIndices.length < pairs) this.rowIndices = new Int32Array(pairs)
  }
}

/**
 * Groups a layer's (row, expert) pairs by node and gives each its output row (`routed.outputRows`). Many rows of an expert
 * with several copies are divided by weight, but only among those copies whose nodes are avoided least (`avoid[node]`,
 * 0 is best). The same arguments give the same groups; `step` turns the remainders round, so that single rows reach all
 * copies in time. Experts with few rows then move between their copies until the busiest node can't be relieved: a layer
 * ends with its last node. Allocates nothing once `groups` has grown. Errors: INTERNAL for an expert that does not exist.
 */
export function groupRows(
  groups: RowGroups,
  routed: RoutedRows,
  routes: RouteTable,
  avoid: Uint8Array,
  step: number,
): void {
  const layer = routes.layers.get(routed.layer)
  if (!layer) throw new MoeshError('INTERNAL', `layer ${routed.layer} has no experts`)
  const pairs = routed.rowCount * routed.expertsPerToken
  groups.reserve(routes.nodeIds.length, layer.experts, layer.nodes.length, pairs)
  groups.pairCount = pairs
  countRows(groups, routed.expertIds, pairs, layer.experts, routed.layer)
  cutIntoPieces(groups, layer, avoid, step)
  if (layer.hasReplicas) levelNodes(groups.pieces, groups.nodeCosts, layer, routes.nodeRanks, avoid)
  sortByNode(groups, routes.nodeIds.length)
  placeRows(groups, routed, pairs)
}

function countRows(groups: RowGroups, expertIds: Int32Array, pairs: number, experts: number, layer: number): void {
  const { expertRows } = groups
  expertRows.fill(0)
  for (let pair = 0; pair < pairs; pair++) {
    const expert = expertIds[pair] ?? -1
    if (expert < 0 || expert >= experts) throw new MoeshError('INTERNAL', `layer ${layer} has no expert ${expert}`)
    expertRows[expert] = (expertRows[expert] ?? 0) + 1
  }
}

function cutIntoPieces(groups: RowGroups, layer: LayerRoutes, avoid: Uint8Array, step: number): void {
  groups.pieces.count = 0
  for (let expert = 0; expert < layer.experts; expert++) {
    const rows = groups.expertRows[expert] ?? 0
    if (rows === 0) continue
    groups.expertPiece[expert] = groups.pieces.count
    const from = layer.starts[expert] ?? 0
    const to = layer.starts[expert + 1] ?? 0
    if (from === to) addPiece(groups, nobody, expert, rows)
    else cutExpert(groups, layer, avoid, expert, rows, from, to, phaseOf(step, expert))
  }
}

/**
 * Systematic sampling: row j of n sits at (j + phase) / n on a line from 0 to 1 that the copies divide by weight. Each
 * copy's number is within one row of its exact share, and over many phases the shares are exact. Few rows stay together,
 * like one row: two copies would both read the expert's weights for them.
 */
function cutExpert(
  groups: RowGroups,
  layer: LayerRoutes,
  avoid: Uint8Array,
  expert: number,
  rows: number,
  from: number,
  to: number,
  phase: number,
): void {
  let least = 255
  for (let copy = from; copy < to; copy++) least = Math.min(least, avoid[layer.nodes[copy] ?? 0] ?? 0)
  let copies = 0
  let weightSum = 0
  for (let copy = from; copy < to; copy++) {
    if ((avoid[layer.nodes[copy] ?? 0] ?? 0) > least) continue
    copies += 1
    weightSum += layer.weights[copy] ?? 0
  }
  const equalShare = 1 / copies
  const units = rows <= readingRows ? 1 : rows
  let given = 0
  let line = 0
  for (let copy = from; copy < to && given < units; copy++) {
    if ((avoid[layer.nodes[copy] ?? 0] ?? 0) > least) continue
    copies -= 1
    // Copies that all weigh nothing share alike.
    line += weightSum > 0 ? (layer.weights[copy] ?? 0) / weightSum : equalShare
    const upTo = copies === 0 ? units : Math.min(units, Math.max(given, Math.ceil(line * units - phase)))
    if (upTo > given) addPiece(groups, layer.nodes[copy] ?? 0, expert, units === 1 ? rows : upTo - given)
    given = upTo
  }
}

/** Multiples of irrational numbers, modulo 1, fill the line evenly whatever steps a layer gets to see. */
function phaseOf(step: number, expert: number): number {
  const turns = (step + 1) * 0.6180339887498949 + expert * 0.7548776662466927
  return turns - Math.floor(turns)
}

function addPiece({ pieces }: RowGroups, node: number, expert: number, rows: number): void {
  const piece = pieces.count++
  pieces.node[piece] = node
  pieces.expert[piece] = expert
  pieces.rows[piece] = rows
}

/** A stable counting sort: nodes ascending, `nobody` last, within a node by expert. */
function sortByNode(groups: RowGroups, nodes: number): void {
  const { pieces, nodeEntries, entryStart } = groups
  nodeEntries.fill(0)
  for (let piece = 0; piece < pieces.count; piece++) {
    const slot = slotOf(pieces.node[piece] ?? nobody, nodes)
    nodeEntries[slot] = (nodeEntries[slot] ?? 0) + 1
  }
  groups.groupCount = 0
  let entries = 0
  for (let slot = 0; slot <= nodes; slot++) {
    const count = nodeEntries[slot] ?? 0
    nodeEntries[slot] = entries
    if (count === 0) continue
    groups.groupNode[groups.groupCount] = slot === nodes ? nobody : slot
    entryStart[groups.groupCount] = entries
    groups.groupCount += 1
    entries += count
  }
  entryStart[groups.groupCount] = entries
  groups.entryCount = entries
  for (let piece = 0; piece < pieces.count; piece++) {
    const slot = slotOf(pieces.node[piece] ?? nobody, nodes)
    const entry = nodeEntries[slot] ?? 0
    nodeEntries[slot] = entry + 1
    groups.entryExpert[entry] = pieces.expert[piece] ?? 0
    groups.entryRows[entry] = pieces.rows[piece] ?? 0
    // For now the entry; `placeRows` turns it into the entry's next output row.
    pieces.next[piece] = entry
  }
}

function slotOf(node: number, nodes: number): number {
  return node === nobody ? nodes : node
}

function placeRows(groups: RowGroups, routed: RoutedRows, pairs: number): void {
  const { pieces, rowStart, rowIndices, expertPiece } = groups
  rowStart[0] = 0
  for (let entry = 0; entry < groups.entryCount; entry++) {
    rowStart[entry + 1] = (rowStart[entry] ?? 0) + (groups.entryRows[entry] ?? 0)
  }
  for (let piece = 0; piece < pieces.count; piece++) pieces.next[piece] = rowStart[pieces.next[piece] ?? 0] ?? 0
  for (let pair = 0; pair < pairs; pair++) {
    const expert = routed.expertIds[pair] ?? 0
    let piece = expertPiece[expert] ?? 0
    if (pieces.rows[piece] === 0) {
      piece += 1
      expertPiece[expert] = piece
    }
    const output = pieces.next[piece] ?? 0
    pieces.next[piece] = output + 1
    pieces.rows[piece] = (pieces.rows[piece] ?? 0) - 1
    rowIndices[output] = Math.floor(pair / routed.expertsPerToken)
    routed.outputRows[pair] = output
  }
}
