/** What of a model one thread of a coordinator computes. The cut changes no bit: a column or head is never divided. */
export type Range = { from: number; to: number }

/** Consecutive pieces of 0 … count-1 whose inner borders are multiples of `multiple`; a piece may be empty. */
export function cut(count: number, threads: number, thread: number, multiple = 1): Range {
  const border = (index: number) =>
    index >= threads ? count : Math.min(count, Math.floor((index * count) / threads / multiple) * multiple)
  return { from: border(thread), to: border(thread + 1) }
}

export function isEmpty({ from, to }: Range): boolean {
  return from >= to
}

/** Columns of a linear layer that one thread computes: whole vector registers, so that no kernel meets a ragged edge. */
export function cutColumns(columns: number, threads: number, thread: number): Range {
  return cut(columns, threads, thread, 32)
}
