/** Numbers that look random and are the same in every run: a linear congruence (Numerical Recipes). */
function* sequence(seed: number): Generator<number, never> {
  let state = seed >>> 0
  for (;;) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    yield state / 2 ** 32
  }
}

/** Uniform in ±scale. */
export function randomFloats(count: number, scale: number, seed: number): Float32Array {
  const numbers = sequence(seed)
  return Float32Array.from({ length: count }, () => (2 * numbers.next().value - 1) * scale)
}

export function randomBytes(count: number, seed: number): Uint8Array {
  const numbers = sequence(seed)
  return Uint8Array.from({ length: count }, () => Math.floor(numbers.next().value * 256))
}
