import assert from 'node:assert/strict'

/** Fast reproducible weights: two bell-shaped bfloat16 values from each draw of a xorshift generator. */

/** Marsaglia's xorshift128: four words of state, any but all zero. */
export type XorshiftState = [x: number, y: number, z: number, w: number]

/** An independent stream for each name, so that the order in which tensors are written changes none. */
export function streamFor(seed: number, name: string): XorshiftState {
  let hash = 0x811c9dc5 ^ seed
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
  const word = () => {
    hash = (hash + 0x9e3779b9) | 0
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35)
    return mixed ^ (mixed >>> 16)
  }
  return [word(), word(), word(), word() | 1]
}

/** The next draw, a uint32. */
export function nextWord(state: XorshiftState): number {
  const [x, y, z, w] = state
  const t = x ^ (x << 11)
  state[0] = y
  state[1] = z
  state[2] = w
  state[3] = w ^ (w >>> 19) ^ t ^ (t >>> 8)
  return state[3] >>> 0
}

/** Distinct enough for measuring: `count` token ids below `vocabulary`. */
export function randomTokens(state: XorshiftState, count: number, vocabulary: number): number[] {
  return Array.from({ length: count }, () => nextWord(state) % vocabulary)
}

const quantiles = 65536

/** bfloat16 quantiles of the normal distribution around `mean`: an entry for each 16-bit draw. */
export function normalTable(mean: number, deviation: number): Uint16Array {
  const values = new Float32Array(quantiles)
  // Walks along the density in small steps; the distribution function passes (i + 0.5) / quantiles at quantile i.
  const step = 1e-4
  let below = 0
  let x = -6
  for (let i = 0; i < quantiles; i++) {
    const wanted = (i + 0.5) / quantiles
    while (below < wanted && x < 6) {
      below += (step * Math.exp(-0.5 * (x + step / 2) ** 2)) / Math.sqrt(2 * Math.PI)
      x += step
    }
    values[i] = mean + deviation * x
  }
  return Uint16Array.from(new Uint32Array(values.buffer), roundToBfloat16)
}

/** Rounds half up: these are values of our own choice. */
function roundToBfloat16(floatBits: number): number {
  return (floatBits + 0x8000) >>> 16
}

/** Fills `out` (an even number of elements) with draws from `table`, and moves the state on. */
export function fillFrom(table: Uint16Array, state: XorshiftState, out: Uint16Array): void {
  assert(table.length === quantiles)
  assert(out.length % 2 === 0)
  let [x, y, z, w] = state
  const count = out.length
  for (let i = 0; i < count; i += 2) {
    const t = x ^ (x << 11)
    x = y
    y = z
    z = w
    w = w ^ (w >>> 19) ^ t ^ (t >>> 8)
    out[i] = table[w & 0xffff] as number
    out[i + 1] = table[w >>> 16] as number
  }
  state[0] = x
  state[1] = y
  state[2] = z
  state[3] = w
}
