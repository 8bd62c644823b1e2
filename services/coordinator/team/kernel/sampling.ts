// AssemblyScript, compiled by build.mjs to sampling.wasm: see attention.ts.

import { exp } from './exp'

/** Tokens whose weights are summed up together, so that the draw looks at sums first. */
const blockTokens: i32 = 64

/**
 * Draws from the softmax of `logits` [count] f32 times `scale`: the first token, in ascending id, at which the sum of
 * weights passes `share` (0 to 1) of the whole. `weights`: room for `count` f32 rounded up to 64; `sums`: for an f64 of
 * every 64. Behind `count`, logits up to the next multiple of 64 must be -Infinity. -1 where no logit is finite, one is not a
 * number, or the scale leaves no weight.
 */
export function draw(logits: usize, count: i32, scale: f32, share: f64, weights: usize, sums: usize): i32 {
  const blocks = (count + blockTokens - 1) / blockTokens
  const bytes = <usize>(blocks * blockTokens) << 2
  let most = v128.load(logits)
  for (let at: usize = 16; at < bytes; at += 16) most = f32x4.max(most, v128.load(logits + at))
  const low = max(f32x4.extract_lane(most, 0), f32x4.extract_lane(most, 1))
  const largest = max(low, max(f32x4.extract_lane(most, 2), f32x4.extract_lane(most, 3)))
  if (!isFinite<f32>(largest)) return -1

  let total: f64 = 0
  const top = f32x4.splat(largest)
  const scales = f32x4.splat(scale)
  for (let block = 0; block < blocks; block++) {
    const from: usize = <usize>(block * blockTokens) << 2
    let even = f64x2.splat(0)
    let odd = even
    for (let at = from; at < from + (<usize>blockTokens << 2); at += 16) {
      const four = exp(f32x4.mul(f32x4.sub(v128.load(logits + at), top), scales))
      v128.store(weights + at, four)
      even = f64x2.add(even, f64x2.promote_low_f32x4(four))
      odd = f64x2.add(odd, f64x2.promote_low_f32x4(v128.shuffle<f32>(four, four, 2, 3, 2, 3)))
    }
    const both = f64x2.add(even, odd)
    const sum = f64x2.extract_lane(both, 0) + f64x2.extract_lane(both, 1)
    f64.store(sums + (<usize>block << 3), sum)
    total += sum
  }

  const target = share * total
  let before: f64 = 0
  let last = -1
  for (let block = 0; block < blocks; block++) {
    const sum = f64.load(sums + (<usize>block << 3))
    if (sum === 0) continue
    if (before + sum <= target && block + 1 < blocks) {
      before += sum
      last = block
      continue
    }
    const id = drawWithin(weights, block, target - before)
    if (id >= 0) return id
    before += sum
    last = block
  }
  if (last < 0) return -1
  // By rounding, the sums of blocks may pass the target where the sum of tokens does not: the last token that can be.
  return drawWithin(weights, last, Infinity)
}

/** The first token of a block at which the sum of its weights passes `target`, or, for Infinity, the last with a weight. */
function drawWithin(weights: usize, block: i32, target: f64): i32 {
  let sum: f64 = 0
  let last = -1
  for (let id = block * blockTokens; id < (block + 1) * blockTokens; id++) {
    const weight = f32.load(weights + (<usize>id << 2))
    if (weight === 0) continue
    last = id
    sum += <f64>weight
    if (sum > target) return id
  }
  return target === Infinity ? last : -1
}
