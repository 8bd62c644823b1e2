/**
 * Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as
 * 1, 2, 3" (SC 2011): a keyed mixing of a counter. It has no state to carry along or to lose, so the number drawn for
 * a (seed, candidate, position) is the same alone, in a batch, after a preemption and in another process.
 */

const multiplierA = 0xd2511f53
const multiplierB = 0xcd9e8d57
const keyStepA = 0x9e3779b9
const keyStepB = 0xbb67ae85

/** Upper 32 bits of the product of two unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff
  const aHigh = a >>> 16
  const bLow = b & 0xffff
  const bHigh = b >>> 16
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16)
  const carry = aLow * bHigh + (middle & 0xffff)
  return (aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(carry / 65536)) >>> 0
}

/** Ten rounds over `words` (4 × u32) in place, keyed by two u32. */
export function philox(words: Uint32Array, keyLow: number, keyHigh: number): void {
  let [c0 = 0, c1 = 0, c2 = 0, c3 = 0] = words
  let k0 = keyLow >>> 0
  let k1 = keyHigh >>> 0
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(multiplierA, c0)
    const low0 = Math.imul(multiplierA, c0) >>> 0
    const high1 = multiplyHigh(multiplierB, c2)
    const low1 = Math.imul(multiplierB, c2) >>> 0
    c0 = (high1 ^ c1 ^ k0) >>> 0
    c1 = low1
    c2 = (high0 ^ c3 ^ k1) >>> 0
    c3 = low0
    k0 = (k0 + keyStepA) >>> 0
    k1 = (k1 + keyStepB) >>> 0
  }
  words[0] = c0
  words[1] = c1
  words[2] = c2
  words[3] = c3
}

/** Uniform in [0, 1), 53 bits. `position` and `candidate` are u32; the seed is taken modulo 2^64. */
export function uniform(seed: bigint, candidate: number, position: number): number {
  words[0] = position
  words[1] = candidate
  words[2] = 0
  words[3] = 0
  const key = BigInt.asUintN(64, seed)
  philox(words, Number(key & 0xffffffffn), Number(key >> 32n))
  return ((words[0] >>> 5) * 67108864 + (words[1] >>> 6)) / 9007199254740992
}

/** Scratch of `uniform`: each thread has its own copy of this module. */
const words = new Uint32Array(4)
