let insideMs = 0

/**
 * ms that this thread has spent in compiled kernels since it started: ONNX Runtime's, attention, and draws from whole
 * vocabularies. What is left of its time is ours.
 */
export function kernelMs(): number {
  return insideMs
}

export function addKernelMs(ms: number): void {
  insideMs += ms
}
