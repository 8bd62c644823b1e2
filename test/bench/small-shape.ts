import type { BenchShape } from '../../bench/shape.ts'

/** A shape that a test can write, pack and run in a second. */
export const small: BenchShape = {
  name: 'small',
  hidden: 256,
  heads: 2,
  layers: 2,
  experts: 8,
  expertsPerToken: 2,
  expertInner: 128,
  vocabulary: 512,
  contextLength: 512,
  ropeTheta: 10000,
  normEps: 1e-5,
}
