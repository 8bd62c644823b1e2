import { rowMultiple } from '../graph/linear.ts'
import type { WeightFormat } from '../model/format.ts'
import type { Provider } from './session.ts'

/** The rows that one product with an expert's weights is given: a multiple of `multiple`, at most `max`. */
export type ProductRows = { multiple: number; max: number }

/**
 * What keeps a row's bits apart from the rows beside it. Kernels choose their order of summation by the number of rows;
 * measured on an H100 with ONNX Runtime 1.30.0, from 1 to 1000 rows, three shapes:
 *
 * | provider | format | products of the same bits |
 * |---|---|---|
 * | webgpu | f32 | all |
 * | webgpu | int4 | from 4 rows on (fewer: another kernel) |
 * | cuda | int4 | up to 16 rows, where inputs come in whole blocks of 32; else cuBLAS chooses (4 to 8 kinds of bits) |
 * | cuda | f32 | of one and the same count: cuBLAS chooses at any (5 to 13 kinds) |
 *
 * `widths`: of the products' inputs. Another device may differ: `proveRowInvariance` looks.
 */
export function productRows(provider: Provider, format: WeightFormat, widths: readonly number[]): ProductRows {
  if (provider === 'cuda') {
    const isChosen = format === 'f32' || widths.some((width) => width % 32 !== 0)
    return { multiple: isChosen ? 16 : 1, max: 16 }
  }
  const multiple = Math.max(...widths.map((width) => rowMultiple(format, width)))
  return { multiple: provider === 'webgpu' && format === 'int4' ? 4 : multiple, max: Number.MAX_SAFE_INTEGER }
}

/** How many rows are fed for `count` that are wanted. */
export function paddedRows(count: number, { multiple }: ProductRows): number {
  return Math.ceil(count / multiple) * multiple
}
