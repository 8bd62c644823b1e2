import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { int8Scales, quantiseInt4, quantiseInt8, transposeRows } from '../../services/pack/quantise.ts'

const runs = { seed: 3, numRuns: 200 }

/** Rows [count, inputs] of weights: plain, tiny, zero and with outliers. */
const matrix = (inputsMax: number) =>
  fc
    .tuple(
      fc.integer({ min: 1, max: 70 }),
      fc.integer({ min: 1, max: inputsMax }),
      fc.nat(2 ** 31 - 1),
      fc.constantFrom(0, 1e-30, 1, 1e20),
    )
    .map(([count, inputs, seed, size]) => {
      let state = seed
      const next = () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0
        return state / 2 ** 32 - 0.5
      }
      const rows = Float32Array.from({ length: count * inputs }, () => next() * size * (next() > 0.45 ? 25 : 1))
      return { count, inputs, rows }
    })

test('rows are turned, whole or in strips, at any column of a wider matrix', () => {
  fc.assert(
    fc.property(matrix(60), fc.nat(59), fc.nat(5), ({ count, inputs, rows }, cut, column) => {
      const outputs = column + count + 3
      const at = Math.min(cut, inputs)
      for (const [from, to] of [
        [0, at],
        [at, inputs],
      ] as const) {
        const out = new Float32Array((to - from) * outputs).fill(7)
        transposeRows(rows, count, inputs, from, to, out, outputs, column)
        for (let k = from; k < to; k++) {
          for (let n = 0; n < outputs; n++) {
            const inside = n >= column && n < column + count
            expect(out[(k - from) * outputs + n]).toBe(inside ? rows[(n - column) * inputs + k] : 7)
          }
        }
      }
    }),
    runs,
  )
})

test('int8: every weight is within half a step of its output channel', () => {
  fc.assert(
    fc.property(matrix(60), ({ count, inputs, rows }) => {
      const scales = new Float32Array(count)
      const out = new Int8Array(count * inputs)
      int8Scales(rows, count, inputs, scales, 0)
      quantiseInt8(rows, count, inputs, 0, inputs, scales, out, count, 0)
      for (let n = 0; n < count; n++) {
        const scale = scales[n] ?? 0
        for (let k = 0; k < inputs; k++) {
          const q = out[k * count + n] ?? 0
          expect(Math.abs(q)).toBeLessThanOrEqual(127)
          expect(Math.abs((rows[n * inputs + k] ?? 0) - q * scale)).toBeLessThanOrEqual(scale * 0.50001)
        }
      }
    }),
    runs,
  )
})

describe('int4', () => {
  const blocks = (inputs: number, block: number) => Math.ceil(inputs / block)
  const quantise = (rows: Float32Array, count: number, inputs: number, block: number) => {
    const nibbles = new Uint8Array((count * blocks(inputs, block) * block) / 2)
    const scales = new Float32Array(count * blocks(inputs, block))
    quantiseInt4(rows, count, inputs, block, nibbles, scales, 0)
    return { nibbles, scales }
  }
  const nibble = (nibbles: Uint8Array, index: number) => ((nibbles[index >> 1] ?? 0) >> (index % 2 === 0 ? 0 : 4)) & 15

  test.each([32, 128])(
    'blocks of %i: the squared error is at most that of plain rounding, padding is zero',
    (block) => {
      fc.assert(
        fc.property(matrix(300), ({ count, inputs, rows }) => {
          const { nibbles, scales } = quantise(rows, count, inputs, block)
          for (let row = 0; row < count; row++) {
            for (let b = 0; b < blocks(inputs, block); b++) {
              const index = row * blocks(inputs, block) + b
              const weights = rows.subarray(row * inputs + b * block, row * inputs + Math.min(inputs, (b + 1) * block))
              const largest = weights.reduce((max, w) => Math.max(max, Math.abs(w)), 0)
              const step = largest / 7 || 1
              let error = 0
              let plain = 0
              for (let i = 0; i < block; i++) {
                const q = nibble(nibbles, index * block + i) - 8
                const w = weights[i]
                if (w === undefined) {
                  expect(q).toBe(0)
                  continue
                }
                error += (w - q * (scales[index] ?? 0)) ** 2
                plain += (w - Math.round(w / step) * step) ** 2
              }
              expect(error).toBeLessThanOrEqual(plain * 1.0001 + largest ** 2 * 1e-9)
            }
          }
        }),
        { seed: 5, numRuns: 60 },
      )
    },
  )

  test('weights that lie on its steps are kept, low nibble first', () => {
    const rows = Float32Array.from({ length: 32 }, (_, i) => (i % 16) - 8)
    const { nibbles, scales } = quantise(rows, 1, 32, 32)
    expect(scales).toEqual(Float32Array.of(1))
    expect([...nibbles.subarray(0, 8)]).toEqual([0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe])
  })

  test('a block of zeros has scale 0 and the zero point', () => {
    const { nibbles, scales } = quantise(new Float32Array(32), 1, 32, 32)
    expect([...scales]).toEqual([0])
    expect(new Set(nibbles)).toEqual(new Set([0x88]))
  })
})
