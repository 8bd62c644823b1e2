import type { RouterSpec } from '../../model/spec.ts'

/**
 * Chooses the experts of one row from the router's logits [experts]: softmax over all of them, the k best (ties: the
 * lower id), their weights divided by their sum if the model says so. Writes ids, ascending, and weights from `at` on;
 * `scratch` has 2 * experts places.
 * In f64 on the host, because ONNX Runtime's Softmax sums in an order that differs between CPUs.
 */
export function chooseExperts(
  logits: Float32Array,
  logitsAt: number,
  experts: number,
  expertsPerToken: number,
  router: RouterSpec,
  scratch: Float64Array,
  ids: Int32Array,
  weights: Float32Array,
  at: number,
): void {
  let largest = Number.NEGATIVE_INFINITY
  for (let e = 0; e < experts; e++) largest = Math.max(largest, logits[logitsAt + e] ?? 0)
  let sum = 0
  for (let e = 0; e < experts; e++) {
    const value = Math.exp((logits[logitsAt + e] ?? 0) - largest)
    scratch[e] = value
    sum += value
  }
  // The best of what is left, k times; a chosen score moves to the upper half of the scratch.
  for (let chosen = 0; chosen < expertsPerToken; chosen++) {
    let best = -1
    let bestScore = -1
    for (let e = 0; e < experts; e++) {
      const score = scratch[e] ?? 0
      if (score > bestScore) {
        best = e
        bestScore = score
      }
    }
    scratch[best] = -1
    scratch[experts + best] = bestScore
    let place = at + chosen
    while (place > at && (ids[place - 1] ?? 0) > best) {
      ids[place] = ids[place - 1] ?? 0
      place--
    }
    ids[place] = best
  }
  let divisor = sum
  if (router.normalise) {
    divisor = 0
    for (let i = at; i < at + expertsPerToken; i++) divisor += scratch[experts + (ids[i] ?? 0)] ?? 0
  }
  for (let i = at; i < at + expertsPerToken; i++) weights[i] = (scratch[experts + (ids[i] ?? 0)] ?? 0) / divisor
}
