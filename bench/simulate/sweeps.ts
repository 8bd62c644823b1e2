import { measureRoundTripMs } from '../delay-proxy.ts'
import { othersCoresMax, watchNow } from '../disturbance.ts'
import { openSimulatedCluster, type SimulatedCluster, type SimulatedClusterOptions } from './cluster.ts'
import type { ExpertCost } from './cost.ts'
import { type LoadPlan, type LoadResult, runLoad } from './load.ts'
import type { SimulateOptions } from './options.ts'
import { ZipfRouter } from './routing.ts'

/** A measurement and where in its sweep it stands. */
export type Point = LoadResult & {
  nodes: number
  /** As asked for, and as an echo of 1 KiB took it; null where nodes are dialled directly. */
  roundTripMs: number | null
  roundTripMsMeasured: number | null
  jitterMs: number
  /** Zipf exponent of the experts' popularity. */
  skew: number
  /** The planner was told the experts' loads, or took them for even. */
  placement: 'by load' | 'even'
  /** By the plan: mean load of the nodes / busiest, with the loads that it was told. */
  balancedness: number
  /** Cores that others used meanwhile; null where nobody knows. */
  othersCores: number | null
}

export type SweepContext = {
  options: Omit<SimulateOptions, 'sweeps' | 'costFile' | 'json' | 'svgDir'>
  cost: ExpertCost
  onPoint: (point: Point) => void
}

/** Rows of a layer that loads are counted from: what a leader has seen after some minutes. */
const loadRows = 4096
const warmUpShare = 0.3
/** A cluster of many slow calls still gets its turn of every step. */
const stepsMin = 8
/** A measurement that others disturbed is made again; of all, the one that was disturbed least counts. */
const attemptsMax = 3

/** Throughput and latency against the number of nodes: experts all alike, no delay. */
export async function sweepNodes(context: SweepContext): Promise<Point[]> {
  const points: Point[] = []
  for (const nodes of context.options.nodes) {
    await withCluster(context, { nodes, loads: null, delay: null }, async (cluster) => {
      points.push(...(await measureAll(context, cluster, { nodes }, context.options.sequences)))
    })
  }
  return points
}

/** Against the round trip to every node, and once more with jitter for the middle number of sequences. */
export async function sweepRoundTrip(context: SweepContext): Promise<Point[]> {
  const { fixedNodes: nodes, roundTripsMs, jitterMs } = context.options
  const points: Point[] = []
  for (const jitter of jitterMs > 0 ? [0, jitterMs] : [0]) {
    await withCluster(context, { nodes, loads: null, delay: { jitterMs: jitter } }, async (cluster) => {
      for (const roundTripMs of roundTripsMs) {
        await cluster.setRoundTripMs(roundTripMs)
        const roundTripMsMeasured = await measureRoundTripMs(roundTripMs, 1024, 25)
        const place = { nodes, roundTripMs, roundTripMsMeasured, jitterMs: jitter }
        points.push(
          ...(await measureAll(
            context,
            cluster,
            place,
            jitter === 0 ? context.options.sequences : [middleOf(context.options)],
          )),
        )
      }
    })
  }
  return points
}

/** Against skewed load: placed by the loads that the experts really have, and as if they were even. */
export async function sweepSkew(context: SweepContext): Promise<Point[]> {
  const { fixedNodes: nodes, skews, skewSequences, shape, seed } = context.options
  const points: Point[] = []
  for (const skew of skews) {
    for (const placement of ['even', 'by load'] as const) {
      const seen = new ZipfRouter(shape, skew, seed)
      const loads = placement === 'even' ? null : (layer: number) => seen.loads(layer, loadRows)
      await withCluster(context, { nodes, loads, delay: null }, async (cluster) => {
        points.push(...(await measureAll(context, cluster, { nodes, skew, placement }, skewSequences)))
      })
    }
  }
  return points
}

/** The number of sequences that charts of latency are drawn for. */
export function middleOf({ sequences }: Pick<SimulateOptions, 'sequences'>): number {
  return sequences[sequences.length >> 1] ?? 1
}

async function withCluster(
  { options, cost }: SweepContext,
  given: Pick<SimulatedClusterOptions, 'nodes' | 'loads' | 'delay'>,
  work: (cluster: SimulatedCluster) => Promise<void>,
): Promise<void> {
  const { shape, format, processes, minReplicas, seed } = options
  const cluster = await openSimulatedCluster({ shape, format, cost, processes, minReplicas, seed, ...given })
  try {
    await work(cluster)
  } finally {
    await cluster.close()
  }
}

async function measureAll(
  { options, onPoint }: SweepContext,
  cluster: SimulatedCluster,
  place: Partial<Point> & Pick<Point, 'nodes'>,
  counts: readonly number[],
): Promise<Point[]> {
  const { shape, seconds, seed } = options
  const skew = place.skew ?? 0
  const points: Point[] = []
  for (const sequences of counts) {
    const { result, othersCores } = await measure(cluster, {
      sequences,
      router: new ZipfRouter(shape, skew, seed),
      warmUp: { steps: stepsMin, seconds: seconds * warmUpShare },
      measured: { steps: stepsMin, seconds },
    })
    const point: Point = {
      roundTripMs: null,
      roundTripMsMeasured: null,
      jitterMs: 0,
      placement: 'even',
      ...place,
      skew,
      balancedness: cluster.plan.balancedness,
      othersCores,
      ...result,
    }
    points.push(point)
    onPoint(point)
  }
  return points
}

async function measure(cluster: SimulatedCluster, plan: LoadPlan) {
  let best = await watchNow(() => runLoad(cluster, plan))
  for (let attempt = 1; attempt < attemptsMax && (best.othersCores ?? 0) > othersCoresMax; attempt++) {
    const again = await watchNow(() => runLoad(cluster, plan))
    if ((again.othersCores ?? 0) < (best.othersCores ?? 0)) best = again
  }
  return best
}
