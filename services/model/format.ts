/**
 * Weight formats of linear layers, experts and the head (norms, routers, biases and embeddings are never quantised).
 *
 * | format | weights of a linear layer `[K inputs, N outputs]` | activations |
 * |---|---|---|
 * | `f32` | `w` f32 `[K, N]` | f32 |
 * | `int8` | `q` i8 `[K, N]`, `scale` f32 `[N]` (symmetric, w = q * scale) | 16 bit a row, as two 8-bit halves |
 * | `int8-fast` | as `int8` | 8 bit a row |
 * | `int4` | `q` u8 `[N, ceil(K / block), block / 2]`, low nibble first, zero point 8; `scale` f32 `[N, ceil(K / block)]` | 8 bit a block (MatMulNBits, accuracy level 4) |
 */
export const weightFormats = ['f32', 'int8', 'int8-fast', 'int4'] as const
export type WeightFormat = (typeof weightFormats)[number]

/** Inputs that share a scale in `int4`: 128 where it divides K (faster), else 32. */
export function int4Block(inputs: number): 32 | 128 {
  return inputs % 128 === 0 ? 128 : 32
}

export type Dtype = 'f32' | 'bf16' | 'f16' | 'i8' | 'u8'
export const dtypeBytes: Record<Dtype, number> = { f32: 4, bf16: 2, f16: 2, i8: 1, u8: 1 }

export type LinearPart = { name: 'w' | 'q' | 'scale'; dtype: Dtype; shape: number[] }

/** The tensors that a linear layer consists of in a format, in the order in which they are stored. */
export function linearParts(format: WeightFormat, inputs: number, outputs: number): LinearPart[] {
  switch (format) {
    case 'f32':
      return [{ name: 'w', dtype: 'f32', shape: [inputs, outputs] }]
    case 'int8':
    case 'int8-fast':
      return [
        { name: 'q', dtype: 'i8', shape: [inputs, outputs] },
        { name: 'scale', dtype: 'f32', shape: [outputs] },
      ]
    case 'int4': {
      const block = int4Block(inputs)
      const blocks = Math.ceil(inputs / block)
      return [
        { name: 'q', dtype: 'u8', shape: [outputs, blocks, block / 2] },
        { name: 'scale', dtype: 'f32', shape: [outputs, blocks] },
      ]
    }
  }
}

export function partBytes(part: LinearPart): number {
  return part.shape.reduce((product, size) => product * size, dtypeBytes[part.dtype])
}
