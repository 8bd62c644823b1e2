// AssemblyScript, compiled by build.mjs to attention.wasm: TypeScript with the types and vectors of WebAssembly.

import { exp } from './exp'

/**
 * Attention of query rows over keys and values in blocks: softmax(q kᵀ scale) v, as in "Attention Is All You Need"
 * (Vaswani et al., 2017), with the paged cache of vLLM (Kwon et al., 2023). Every row is computed by itself, in one order
 * that depends on its first and last visible key alone: not on the rows beside it, and not on the processor, since
 * WebAssembly's arithmetic is IEEE 754 without fused operations.
 */

/** Keys and values of a block: [heads][blockTokens][headDim] keys, then as many values. */
export const blockTokens: i32 = 32
/** Rows that go over a block while it is in the cache. */
const rowsAtOnce: i32 = 8
/** Hides a key, finite. */
const hidden: f32 = -1e30

/**
 * `q`: [heads][rows][headDim] f32, a row for each of the `group` query heads of a token, token by token. `out`:
 * [tokens][heads * group * headDim] f32. `firsts`, `ends`: [rows] i32, each row sees the keys first … end-1 of the
 * sequence. `blocks`: [blocks] u32, where each lies. `scratch`: 64 bytes, and room for `rowsAtOnce` rows of scores over
 * all keys from the first block on. headDim: a multiple of 4.
 */
export function attend(
  q: usize,
  out: usize,
  rows: i32,
  group: i32,
  firsts: usize,
  ends: usize,
  blocks: usize,
  heads: i32,
  headDim: i32,
  scale: f32,
  scratch: usize,
): void {
  const rowBytes: usize = <usize>headDim * 4
  const headBytes: usize = <usize>blockTokens * rowBytes
  for (let head = 0; head < heads; head++) {
    const keysAt: usize = headBytes * head
    const valuesAt: usize = headBytes * (heads + head)
    for (let from = 0; from < rows; from += rowsAtOnce) {
      const to = min(from + rowsAtOnce, rows)
      const queries = q + rowBytes * (head * rows)
      attendHead(queries, out, from, to, group, firsts, ends, blocks, keysAt, valuesAt, head, heads, rowBytes, scale, scratch)
    }
  }
}

/** Rows from … to-1 of one head. */
function attendHead(
  q: usize,
  out: usize,
  from: i32,
  to: i32,
  group: i32,
  firsts: usize,
  ends: usize,
  blocks: usize,
  keysAt: usize,
  valuesAt: usize,
  head: i32,
  heads: i32,
  rowBytes: usize,
  scale: f32,
  scratch: usize,
): void {
  const scales = f32x4.splat(scale)
  let first = i32.MAX_VALUE
  let end = 0
  for (let r = from; r < to; r++) {
    first = min(first, int(firsts, r))
    end = max(end, int(ends, r))
  }
  const firstBlock = first / blockTokens
  const endBlock = (end + blockTokens - 1) / blockTokens
  // The scores of row r: key t of the sequence lies at scores + stride (r - from) + 4 t. Their sums lie before them.
  const stride: usize = <usize>((endBlock - firstBlock) * blockTokens) << 2
  const scores: usize = scratch + 64 - (<usize>(firstBlock * blockTokens) << 2)
  const sums: usize = scratch + 16

  for (let block = firstBlock; block < endBlock; block++) {
    const start = block * blockTokens
    const keys = <usize>load<u32>(blocks + (<usize>block << 2)) + keysAt
    v128.store(scratch, touched(keys, <usize>min(blockTokens, end - start) * rowBytes))
    for (let r = from; r < to; r++) {
      const last = min(int(ends, r), start + blockTokens)
      // Four at a time; those of them that are not visible are overwritten by the softmax.
      for (let t = max(int(firsts, r), start) & ~3; t < last; t += 4) {
        const score = scores + stride * (r - from) + (<usize>t << 2)
        v128.store(score, f32x4.mul(scales, dotFour(q + rowBytes * r, keys + <usize>(t - start) * rowBytes, rowBytes)))
      }
    }
  }
  for (let r = from; r < to; r++) {
    const sum = softmax(scores + stride * (r - from), int(firsts, r), int(ends, r))
    f32.store(sums + (<usize>(r - from) << 2), sum)
    memory.fill(placeOf(out, r, group, head, heads, rowBytes), 0, rowBytes)
  }
  for (let block = firstBlock; block < endBlock; block++) {
    const start = block * blockTokens
    const values = <usize>load<u32>(blocks + (<usize>block << 2)) + valuesAt
    v128.store(scratch, touched(values, <usize>min(blockTokens, end - start) * rowBytes))
    for (let r = from; r < to; r++) {
      const firstKey = max(int(firsts, r), start)
      const lastKey = min(int(ends, r), start + blockTokens)
      if (firstKey >= lastKey) continue
      const weights = scores + stride * (r - from) + (<usize>firstKey << 2)
      const seen = values + <usize>(firstKey - start) * rowBytes
      addWeighted(placeOf(out, r, group, head, heads, rowBytes), weights, seen, lastKey - firstKey, rowBytes)
    }
  }
  for (let r = from; r < to; r++) {
    const sum = v128.load_splat<f32>(sums + (<usize>(r - from) << 2))
    const row = placeOf(out, r, group, head, heads, rowBytes)
    for (let at: usize = 0; at < rowBytes; at += 16) v128.store(row + at, f32x4.div(v128.load(row + at), sum))
  }
}

function placeOf(out: usize, row: i32, group: i32, head: i32, heads: i32, rowBytes: usize): usize {
  const token = row / group
  return out + rowBytes * ((token * heads + head) * group + (row - token * group))
}

/** Sum of the squares of `count` numbers, a multiple of 4: of every eighth, then of these. */
export function sumSquares(at: usize, count: i32): f32 {
  let s0 = f32x4.splat(0)
  let s1 = s0
  const end = at + (<usize>count << 2)
  for (; at + 16 < end; at += 32) {
    const x0 = v128.load(at)
    const x1 = v128.load(at, 16)
    s0 = f32x4.add(s0, f32x4.mul(x0, x0))
    s1 = f32x4.add(s1, f32x4.mul(x1, x1))
  }
  if (at < end) {
    const x = v128.load(at)
    s0 = f32x4.add(s0, f32x4.mul(x, x))
  }
  return addLanes(f32x4.add(s0, s1))
}

/**
 * `heads` heads of headDim numbers, one behind the other from `from` on, to `to`, `stride` bytes apart: limited to
 * -limit … limit, and turned by `cos` and `sin` [headDim / 2], (a, b) → (a cos - b sin, b cos + a sin) for the two halves.
 * With `weights`, each is multiplied by `inverse` and them first; those of a head lie `weightStride` bytes behind those
 * of the one before. An `inverse` of 0 stands for 1 / sqrt(mean of the head's squares + eps).
 */
export function turn(
  from: usize,
  to: usize,
  stride: usize,
  heads: i32,
  headDim: i32,
  weights: usize,
  weightStride: usize,
  inverse: f32,
  eps: f32,
  limit: f32,
  cos: usize,
  sin: usize,
): void {
  const half: usize = <usize>headDim << 1
  for (let head = 0; head < heads; head++) {
    if (weights !== 0) {
      const by = inverse !== 0 ? inverse : <f32>1 / sqrt(sumSquares(from, headDim) / <f32>headDim + eps)
      for (let at: usize = 0; at < 2 * half; at += 16) {
        const x = f32x4.mul(v128.load(from + at), f32x4.splat(by))
        v128.store(from + at, f32x4.mul(x, v128.load(weights + at)))
      }
      weights += weightStride
    }
    let at: usize = 0
    for (; at + 16 <= half; at += 16) {
      const a = limited(v128.load(from + at), limit)
      const b = limited(v128.load(from + half + at), limit)
      const c = v128.load(cos + at)
      const s = v128.load(sin + at)
      v128.store(to + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)))
      v128.store(to + half + at, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)))
    }
    for (; at < half; at += 4) {
      const a = max(min(f32.load(from + at), limit), -limit)
      const b = max(min(f32.load(from + half + at), limit), -limit)
      const c = f32.load(cos + at)
      const s = f32.load(sin + at)
      f32.store(to + at, a * c - b * s)
      f32.store(to + half + at, b * c + a * s)
    }
    from += 2 * half
    to += stride
  }
}

/** The same without norm and rotation. */
export function place(from: usize, to: usize, stride: usize, heads: i32, headDim: i32, limit: f32): void {
  const rowBytes: usize = <usize>headDim << 2
  for (let head = 0; head < heads; head++) {
    for (let at: usize = 0; at < rowBytes; at += 16) v128.store(to + at, limited(v128.load(from + at), limit))
    from += rowBytes
    to += stride
  }
}

function limited(x: v128, limit: f32): v128 {
  return f32x4.max(f32x4.min(x, f32x4.splat(limit)), f32x4.splat(-limit))
}

function int(list: usize, index: i32): i32 {
  return i32.load(list + (<usize>index << 2))
}

/**
 * Reads a value of every cache line. What follows reads in an order that memory delivers at half the speed; this one it
 * foresees. The result has to be stored somewhere, or there would be no reading.
 */
function touched(at: usize, bytes: usize): v128 {
  let some = i32x4.splat(0)
  for (const end = at + bytes; at < end; at += 256) {
    const two = v128.or(v128.load(at), v128.load(at, 64))
    some = v128.or(some, v128.or(two, v128.or(v128.load(at, 128), v128.load(at, 192))))
  }
  return some
}

/** Products of a query with four keys that lie behind each other. Sums of every eighth number, then of these. */
function dotFour(q: usize, keys: usize, rowBytes: usize): v128 {
  let a0 = f32x4.splat(0)
  let a1 = a0
  let b0 = a0
  let b1 = a0
  let c0 = a0
  let c1 = a0
  let d0 = a0
  let d1 = a0
  const second = keys + rowBytes
  const third = second + rowBytes
  const fourth = third + rowBytes
  let at: usize = 0
  for (const end: usize = rowBytes & ~31; at < end; at += 32) {
    const x0 = v128.load(q + at)
    const x1 = v128.load(q + at, 16)
    a0 = f32x4.add(a0, f32x4.mul(x0, v128.load(keys + at)))
    a1 = f32x4.add(a1, f32x4.mul(x1, v128.load(keys + at, 16)))
    b0 = f32x4.add(b0, f32x4.mul(x0, v128.load(second + at)))
    b1 = f32x4.add(b1, f32x4.mul(x1, v128.load(second + at, 16)))
    c0 = f32x4.add(c0, f32x4.mul(x0, v128.load(third + at)))
    c1 = f32x4.add(c1, f32x4.mul(x1, v128.load(third + at, 16)))
    d0 = f32x4.add(d0, f32x4.mul(x0, v128.load(fourth + at)))
    d1 = f32x4.add(d1, f32x4.mul(x1, v128.load(fourth + at, 16)))
  }
  if (at < rowBytes) {
    const x = v128.load(q + at)
    a0 = f32x4.add(a0, f32x4.mul(x, v128.load(keys + at)))
    b0 = f32x4.add(b0, f32x4.mul(x, v128.load(second + at)))
    c0 = f32x4.add(c0, f32x4.mul(x, v128.load(third + at)))
    d0 = f32x4.add(d0, f32x4.mul(x, v128.load(fourth + at)))
  }
  const ab = addHalves(f32x4.add(a0, a1), f32x4.add(b0, b1))
  const cd = addHalves(f32x4.add(c0, c1), f32x4.add(d0, d1))
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 2, 4, 6), v128.shuffle<f32>(ab, cd, 1, 3, 5, 7))
}

function addHalves(a: v128, b: v128): v128 {
  return f32x4.add(v128.shuffle<f32>(a, b, 0, 1, 4, 5), v128.shuffle<f32>(a, b, 2, 3, 6, 7))
}

/** Scores to weights relative to the largest, in place; returns their sum. */
function softmax(scores: usize, first: i32, end: i32): f32 {
  const from = first & ~3
  const to = (end + 3) & ~3
  for (let t = from; t < first; t++) f32.store(scores + (<usize>t << 2), hidden)
  for (let t = end; t < to; t++) f32.store(scores + (<usize>t << 2), hidden)
  let m = f32x4.splat(hidden)
  for (let t = from; t < to; t += 4) m = f32x4.max(m, v128.load(scores + (<usize>t << 2)))
  const low = max(f32x4.extract_lane(m, 0), f32x4.extract_lane(m, 1))
  const largest = f32x4.splat(max(low, max(f32x4.extract_lane(m, 2), f32x4.extract_lane(m, 3))))
  let sum = f32x4.splat(0)
  for (let t = from; t < to; t += 4) {
    const at = scores + (<usize>t << 2)
    const weights = exp(f32x4.sub(v128.load(at), largest))
    v128.store(at, weights)
    sum = f32x4.add(sum, weights)
  }
  return addLanes(sum)
}

function addLanes(x: v128): f32 {
  const even = f32x4.extract_lane(x, 0) + f32x4.extract_lane(x, 2)
  return even + (f32x4.extract_lane(x, 1) + f32x4.extract_lane(x, 3))
}

/** out += weights[t] values[t] for `count` rows of values, in their order. */
function addWeighted(out: usize, weights: usize, values: usize, count: i32, rowBytes: usize): void {
  let at: usize = 0
  for (const end: usize = rowBytes & ~127; at < end; at += 128) {
    const to = out + at
    let s0 = v128.load(to)
    let s1 = v128.load(to, 16)
    let s2 = v128.load(to, 32)
    let s3 = v128.load(to, 48)
    let s4 = v128.load(to, 64)
    let s5 = v128.load(to, 80)
    let s6 = v128.load(to, 96)
    let s7 = v128.load(to, 112)
    let v = values + at
    for (let t = 0; t < count; t++) {
      const w = v128.load_splat<f32>(weights + (<usize>t << 2))
      s0 = f32x4.add(s0, f32x4.mul(w, v128.load(v)))
      s1 = f32x4.add(s1, f32x4.mul(w, v128.load(v, 16)))
      s2 = f32x4.add(s2, f32x4.mul(w, v128.load(v, 32)))
      s3 = f32x4.add(s3, f32x4.mul(w, v128.load(v, 48)))
      s4 = f32x4.add(s4, f32x4.mul(w, v128.load(v, 64)))
      s5 = f32x4.add(s5, f32x4.mul(w, v128.load(v, 80)))
      s6 = f32x4.add(s6, f32x4.mul(w, v128.load(v, 96)))
      s7 = f32x4.add(s7, f32x4.mul(w, v128.load(v, 112)))
      v += rowBytes
    }
    v128.store(to, s0)
    v128.store(to, s1, 16)
    v128.store(to, s2, 32)
    v128.store(to, s3, 48)
    v128.store(to, s4, 64)
    v128.store(to, s5, 80)
    v128.store(to, s6, 96)
    v128.store(to, s7, 112)
  }
  for (; at < rowBytes; at += 16) {
    let sum = v128.load(out + at)
    let v = values + at
    for (let t = 0; t < count; t++) {
      sum = f32x4.add(sum, f32x4.mul(v128.load_splat<f32>(weights + (<usize>t << 2)), v128.load(v)))
      v += rowBytes
    }
    v128.store(out + at, sum)
  }
}
