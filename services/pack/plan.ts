import type { Dtype, WeightFormat } from '../model/format.ts'
import { dtypeBytes, linearParts } from '../model/format.ts'
import type { ModelSpec, MoeFfnSpec } from '../model/spec.ts'
import { coordinatorTensors, shardLayout, type TensorSpec, tensorAlignment } from '../model/tensors.ts'

/**
 * Where everything of a pack lies, from the model's spec alone: known before a byte is written, so that progress has
 * a total, an interrupted pack has something to be compared with, and `inspect` can say sizes of packs not made yet.
 */

export const coordinatorFile = 'coordinator.bin'
export const shardAlignment = 4096

export function expertsFile(layer: number): string {
  return `experts-${String(layer).padStart(3, '0')}.bin`
}

/** A stored tensor: `NAME` or `NAME.PART`; `offset` is within its file. */
export type PlannedPart = { name: string; dtype: Dtype; shape: number[]; offset: number; bytes: number }

/** What is written, and resumed, at once: [offset, offset + bytes) of a file. */
export type PlannedUnit = { offset: number; bytes: number; parts: PlannedPart[] } & (
  | { kind: 'tensor'; tensor: TensorSpec }
  | { kind: 'shard'; layer: number; expert: number; ffn: MoeFfnSpec }
)

export type PlannedFile = { name: string; bytes: number; units: PlannedUnit[] }

export function planPack(spec: ModelSpec, format: WeightFormat, embeddingDtype: Dtype): PlannedFile[] {
  const coordinator = coordinatorPlan(spec, format, embeddingDtype)
  const experts = spec.layers.flatMap(({ ffn }, layer) =>
    ffn.kind === 'moe' ? [expertsPlan(spec, ffn, layer, format)] : [],
  )
  return [coordinator, ...experts]
}

function coordinatorPlan(spec: ModelSpec, format: WeightFormat, embeddingDtype: Dtype): PlannedFile {
  const units: PlannedUnit[] = []
  let end = 0
  for (const tensor of coordinatorTensors(spec)) {
    const offset = alignUp(end, tensorAlignment)
    end = offset
    const parts = storedParts(tensor, format, embeddingDtype).map((part) => {
      const start = alignUp(end, tensorAlignment)
      const bytes = tensorBytes(part)
      end = start + bytes
      return { ...part, offset: start, bytes }
    })
    units.push({ kind: 'tensor', tensor, offset, bytes: end - offset, parts })
  }
  return { name: coordinatorFile, bytes: end, units }
}

function expertsPlan(spec: ModelSpec, ffn: MoeFfnSpec, layer: number, format: WeightFormat): PlannedFile {
  const { parts, bytes } = shardLayout(spec, ffn, format)
  const stride = alignUp(bytes, shardAlignment)
  const units = Array.from({ length: ffn.experts }, (_, expert): PlannedUnit => {
    const offset = expert * stride
    const placed = parts.map((part) => ({ ...part, offset: offset + part.offset }))
    return { kind: 'shard', layer, expert, ffn, offset, bytes, parts: placed }
  })
  return { name: expertsFile(layer), bytes: (ffn.experts - 1) * stride + bytes, units }
}

/** The tensors that one of a coordinator's is stored as. */
export function storedParts(
  tensor: TensorSpec,
  format: WeightFormat,
  embeddingDtype: Dtype,
): { name: string; dtype: Dtype; shape: number[] }[] {
  const { name, kind, shape } = tensor
  switch (kind) {
    case 'linear': {
      const [inputs = 0, outputs = 0] = shape
      return linearParts(format, inputs, outputs).map((part) => ({ ...part, name: `${name}.${part.name}` }))
    }
    case 'embedding':
      return [{ name, dtype: embeddingDtype, shape }]
    case 'vector':
    case 'router':
      return [{ name, dtype: 'f32', shape }]
  }
}

export function tensorBytes({ dtype, shape }: { dtype: Dtype; shape: readonly number[] }): number {
  return shape.reduce((product, axis) => product * axis, dtypeBytes[dtype])
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment
}
