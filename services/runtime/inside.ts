let insideMs = 0

/** ms that this thread has spent in compiled kernels since it started: what is left of its time is ours. */
export function kernelMs(): number {
  return insideMs
}

export function addKernelMs(ms: number): void {
  insideMs += ms
}
