/**
 * The models of the benchmark: OLMoE's layer with few layers, so that one fits the memory of a small machine twice
 * (ours and the peer's), and a small one to see in a minute that everything runs.
 */
export type BenchShape = {
  name: string
  hidden: number
  /** As many key-value heads as heads, like OLMoE. */
  heads: number
  layers: number
  experts: number
  expertsPerToken: number
  expertInner: number
  vocabulary: number
  contextLength: number
  ropeTheta: number
  normEps: number
}

export const benchShapes = {
  'olmoe-4l': {
    name: 'olmoe-4l',
    hidden: 2048,
    heads: 16,
    layers: 4,
    experts: 64,
    expertsPerToken: 8,
    expertInner: 1024,
    vocabulary: 50304,
    contextLength: 4096,
    ropeTheta: 10000,
    normEps: 1e-5,
  },
  tiny: {
    name: 'tiny',
    hidden: 1024,
    heads: 8,
    layers: 2,
    experts: 32,
    expertsPerToken: 4,
    expertInner: 512,
    vocabulary: 16384,
    contextLength: 4096,
    ropeTheta: 10000,
    normEps: 1e-5,
  },
} as const satisfies Record<string, BenchShape>

export type ShapeName = keyof typeof benchShapes

export function isShapeName(name: string): name is ShapeName {
  return Object.hasOwn(benchShapes, name)
}
