/**
 * The k largest of many values without sorting them all: a heap of the k best so far, whose root is the worst of them.
 * Nearly every value fails the one comparison with the root, so the pass costs about as much as reading the values.
 */
export class Largest {
  /** Heap of indices into the values; `count` of them are in use. */
  readonly indices: Int32Array
  count = 0

  constructor(capacity: number) {
    this.indices = new Int32Array(capacity)
  }

  /**
   * Selects the min(k, length) largest of `values[0..length)`, ties to the lower index. Values that are not numbers are
   * never taken, so fewer may come. The root (`indices[0]`) is the worst one selected; the rest is in no order.
   */
  select(values: Float32Array | Float64Array, length: number, k: number): void {
    const heap = this.indices
    const size = Math.min(k, heap.length)
    let count = 0
    let index = 0
    for (; index < length && count < size; index++) {
      if (!Number.isNaN(values[index] ?? 0)) heap[count++] = index
    }
    for (let start = (count >> 1) - 1; start >= 0; start--) siftDown(heap, values, start, count)
    this.count = count
    if (count === 0) return
    let worst = values[heap[0] ?? 0] ?? 0
    while (index < length) {
      // Four comparisons an iteration take half the time of one.
      while (index + 4 <= length && !isAnyAbove(values, index, worst)) index += 4
      for (const end = Math.min(index + 4, length); index < end; index++) {
        // An equal value has a higher index than all before it, so it loses.
        if (!((values[index] ?? 0) > worst)) continue
        heap[0] = index
        siftDown(heap, values, 0, size)
        worst = values[heap[0] ?? 0] ?? 0
      }
    }
  }

  /** Puts the selected indices in order, largest value first. They are a heap no more after it. */
  sort(values: Float32Array | Float64Array): void {
    const heap = this.indices
    for (let end = this.count - 1; end > 0; end--) {
      const worst = heap[0] ?? 0
      heap[0] = heap[end] ?? 0
      heap[end] = worst
      siftDown(heap, values, 0, end)
    }
  }
}

/** Whether one of the four values from `index` on is larger than `bound`. */
function isAnyAbove(values: Float32Array | Float64Array, index: number, bound: number): boolean {
  return (
    (values[index] ?? 0) > bound ||
    (values[index + 1] ?? 0) > bound ||
    (values[index + 2] ?? 0) > bound ||
    (values[index + 3] ?? 0) > bound
  )
}

/** Restores the heap below `start`: no index is better than those under it. */
function siftDown(heap: Int32Array, values: Float32Array | Float64Array, start: number, size: number): void {
  const moved = heap[start] ?? 0
  const value = values[moved] ?? 0
  let hole = start
  for (;;) {
    let child = 2 * hole + 1
    if (child >= size) break
    let childIndex = heap[child] ?? 0
    let childValue = values[childIndex] ?? 0
    if (child + 1 < size) {
      const otherIndex = heap[child + 1] ?? 0
      const otherValue = values[otherIndex] ?? 0
      if (isWorse(otherValue, otherIndex, childValue, childIndex)) {
        child++
        childIndex = otherIndex
        childValue = otherValue
      }
    }
    if (!isWorse(childValue, childIndex, value, moved)) break
    heap[hole] = childIndex
    hole = child
  }
  heap[hole] = moved
}

function isWorse(value: number, index: number, thanValue: number, thanIndex: number): boolean {
  return value < thanValue || (value === thanValue && index > thanIndex)
}
