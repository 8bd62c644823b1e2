import type { WeightFormat } from '../services/model/format.ts'
import type { PeerFormat } from './gguf.ts'
import type { Target } from './target.ts'

/** The rows of the report. A name says what is measured and in which weight format. */
export type BenchFormat = Exclude<WeightFormat, 'f32'>

type Named<Kind extends object> = { name: string; format: BenchFormat } & Kind

/** One process of each side. */
export type AlonePlan = Named<{ kind: 'prefill'; rows: number } | { kind: 'decode'; sequences: number; steps: number }>

export type ClusterPlan = Named<
  /** Two expert processes of one thread each, against the peer's way to do the same. */
  | { kind: 'cluster-decode'; sequences: number; steps: number }
  /** A cluster with a slow network, against the same one with a fast network. */
  | { kind: 'cluster-delay'; sequences: number; steps: number; roundTripMs: number }
>

export type RowPlan = AlonePlan | ClusterPlan

/** The peer's format that comes closest in bits a weight. */
export const peerFormats: Record<BenchFormat, PeerFormat> = { int8: 'Q8_0', 'int8-fast': 'Q8_0', int4: 'Q4_0' }

/** Tokens that every sequence has before its decoding is measured. */
export const contextTokens = 128

/**
 * llama.cpp's RPC mode with two one-thread servers, measured on a quiet machine, decoded 0.53 times as fast as
 * llama.cpp alone with one thread; its prebuilt binaries have no RPC server, so the run's own one-thread figure stands in.
 */
export const peerRpcFactor = 0.53

/** Short enough that the context stays about the same. */
const decodeSteps: ReadonlyMap<number, number> = new Map([
  [1, 48],
  [4, 24],
  [16, 16],
  [32, 12],
])

export const benchFormats = ['int8', 'int8-fast', 'int4'] as const

export const alonePlans: readonly AlonePlan[] = benchFormats.flatMap((format): AlonePlan[] => [
  ...[128, 512].map((rows): AlonePlan => ({ name: `prefill-${rows}/${format}`, format, kind: 'prefill', rows })),
  ...[...decodeSteps].map(
    ([sequences, steps]): AlonePlan => ({
      name: `decode-${sequences}/${format}`,
      format,
      kind: 'decode',
      sequences,
      steps,
    }),
  ),
])

export const clusterPlans: readonly ClusterPlan[] = [
  { name: 'grpc-decode-1/int4', format: 'int4', kind: 'cluster-decode', sequences: 1, steps: 48 },
  {
    name: 'grpc-delay-5ms-16/int8',
    format: 'int8',
    kind: 'cluster-delay',
    sequences: 16,
    steps: 16,
    roundTripMs: 5,
  },
]

export const rowPlans: readonly RowPlan[] = [...alonePlans, ...clusterPlans]

/** A measurement lasts at least so long. */
const secondsMin = 1

/** Tokens a second. */
export async function prefillRate(target: Target, rows: number): Promise<number> {
  let seconds = 0
  let prompts = 0
  while (seconds < secondsMin) {
    seconds += await target.prefill(rows)
    prompts++
  }
  return (prompts * rows) / seconds
}

/** Tokens a second of all sequences together. */
export async function decodeRate(target: Target, sequences: number, steps: number): Promise<number> {
  let seconds = 0
  let tokens = 0
  while (seconds < secondsMin) {
    seconds += await target.decode(sequences, contextTokens, steps)
    tokens += sequences * steps
  }
  return tokens / seconds
}
