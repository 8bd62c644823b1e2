import { type NormWeights, projectionGraph, routerGraph } from '../../graph/layers.ts'
import type { WeightFormat } from '../../model/format.ts'
import type { DenseFfnSpec, LayerSpec, ModelSpec, MoeFfnSpec } from '../../model/spec.ts'
import { createSession, type Session, type SessionOptions } from '../../runtime/session.ts'
import type { Attention, AttentionPart } from './attention.ts'
import { readColumns, readFloats, readWhole, type TensorSource } from './columns.ts'
import { cutColumns, isEmpty, type Range } from './cut.ts'

/** From weights to sessions: what one thread of a coordinator loads. `forward.ts` runs it. */

/** What a thread loads its share of the weights from, and which share it is. */
export type ShareSetup = {
  spec: ModelSpec
  format: WeightFormat
  source: TensorSource
  /** The share of `thread` of `threads`; of one beyond them nothing is left. */
  thread: number
  threads: number
  session: SessionOptions
}

export type Columns = { session: Session; range: Range }

export type LayerPart = {
  spec: LayerSpec
  qkv: Session | null
  attention: AttentionPart
  output: Columns | null
  ffn:
    | { kind: 'moe'; spec: MoeFfnSpec; router: Session | null }
    | { kind: 'dense'; spec: DenseFfnSpec; gateUp: Columns | null; down: Columns | null }
}

/** A layer's sessions for the KV heads and columns of one thread. */
export function buildLayer(
  setup: ShareSetup,
  shared: Attention,
  spec: LayerSpec,
  index: number,
  kvHeads: Range,
): LayerPart {
  const { source, format, session } = setup
  const { hidden } = setup.spec
  const prefix = `layers.${index}`
  const { attention, ffn } = spec
  const { headDim } = attention
  const group = attention.heads / attention.kvHeads
  const keys: Range = { from: kvHeads.from * headDim, to: kvHeads.to * headDim }
  const queries: Range = { from: keys.from * group, to: keys.to * group }
  const bias = (name: string) => (attention.qkvBias ? `${prefix}.${name}_bias` : null)
  const qkv = isEmpty(kvHeads)
    ? null
    : createSession(
        projectionGraph(
          readColumns(source, format, hidden, [
            { tensor: `${prefix}.q`, outputs: attention.heads * headDim, range: queries, bias: bias('q') },
            { tensor: `${prefix}.k`, outputs: attention.kvHeads * headDim, range: keys, bias: bias('k') },
            { tensor: `${prefix}.v`, outputs: attention.kvHeads * headDim, range: keys, bias: bias('v') },
          ]),
          { norm: normOf(setup, `${prefix}.attention_norm`) },
        ),
        session,
      )
  const headNorm = (name: string) => (attention.qkNorm === 'none' ? null : readFloats(source, `${prefix}.${name}`))
  return {
    spec,
    qkv,
    attention: shared.part({
      spec: attention,
      kvHeads,
      qNorm: headNorm('q_norm'),
      kNorm: headNorm('k_norm'),
      normEps: setup.spec.normEps,
    }),
    output: columns(
      setup,
      `${prefix}.o`,
      attention.heads * headDim,
      hidden,
      null,
      attention.outputBias ? `${prefix}.o_bias` : null,
    ),
    ffn: ffn.kind === 'moe' ? buildRouter(setup, ffn, prefix) : buildDense(setup, ffn, prefix),
  }
}

function buildRouter(setup: ShareSetup, ffn: MoeFfnSpec, prefix: string): LayerPart['ffn'] {
  const { source, format, session, thread, threads } = setup
  const { hidden } = setup.spec
  if (thread >= threads) return { kind: 'moe', spec: ffn, router: null }
  const graph = routerGraph({
    format,
    hidden,
    experts: ffn.experts,
    norm: normOf(setup, `${prefix}.ffn_norm`),
    router: readWhole(source, `${prefix}.router`, [hidden, ffn.experts]),
  })
  return { kind: 'moe', spec: ffn, router: createSession(graph, session) }
}

function buildDense(setup: ShareSetup, ffn: DenseFfnSpec, prefix: string): LayerPart['ffn'] {
  const { source, format, session, thread, threads } = setup
  const { hidden } = setup.spec
  const range = cutColumns(ffn.inner, threads, thread)
  const tensor = `${prefix}.gate_up`
  const bias = ffn.bias ? `${prefix}.gate_up_bias` : null
  // The same columns of gate and of up, so that the thread can multiply them.
  const gate: Range = range
  const up: Range = { from: ffn.inner + range.from, to: ffn.inner + range.to }
  const gateUp = isEmpty(range)
    ? null
    : {
        range,
        session: createSession(
          projectionGraph(
            readColumns(source, format, hidden, [
              { tensor, outputs: 2 * ffn.inner, range: gate, bias },
              { tensor, outputs: 2 * ffn.inner, range: up, bias },
            ]),
            { norm: normOf(setup, `${prefix}.ffn_norm`), gated: ffn.activation },
          ),
          session,
        ),
      }
  const downBias = ffn.bias ? `${prefix}.down_bias` : null
  return {
    kind: 'dense',
    spec: ffn,
    gateUp,
    down: columns(setup, `${prefix}.down`, ffn.inner, hidden, null, downBias),
  }
}

/** This thread's columns of a linear layer, behind an optional norm. */
export function columns(
  setup: ShareSetup,
  tensor: string,
  inputs: number,
  outputs: number,
  norm: string | null,
  bias: string | null = null,
): Columns | null {
  const { source, format, session, thread, threads } = setup
  const range = cutColumns(outputs, threads, thread)
  if (isEmpty(range)) return null
  const weights = readColumns(source, format, inputs, [{ tensor, outputs, range, bias }])
  const graph = projectionGraph(weights, norm === null ? {} : { norm: normOf(setup, norm) })
  return { range, session: createSession(graph, session) }
}

function normOf(setup: ShareSetup, name: string): NormWeights {
  const { source, spec } = setup
  return { weight: readWhole(source, name, [spec.hidden]), eps: spec.normEps }
}
