/** What of WebAssembly is used; the language's own declarations do not have it. */
declare const WebAssembly: {
  Memory: new (descriptor: { initial: number; maximum: number }) => WasmMemory
  Module: new (bytes: Uint8Array) => object
  Instance: new (module: object, imports: { env: { memory: WasmMemory } }) => { exports: unknown }
}

export type WasmMemory = { readonly buffer: ArrayBuffer; grow(pages: number): number }

export const wasmPageBytes = 65536
/** Pointers have 32 bits. */
export const wasmPagesMax = 65536

export function createWasmMemory(pages: number, maximum = wasmPagesMax): WasmMemory {
  return new WebAssembly.Memory({ initial: pages, maximum })
}

/** At a kernel's end: the digest of its source, see `coordinator/team/kernel/build.mjs`. */
const sourceSectionBytes = 3 + 'source'.length + 32

/** A kernel without what does not change what it computes. */
export function codeOf(bytes: Uint8Array): Uint8Array {
  return bytes.subarray(0, bytes.length - sourceSectionBytes)
}

/** A compiled kernel on a memory. What it exports is known by its source alone. */
export function instantiateKernel<Exports>(bytes: Uint8Array, memory: WasmMemory): Exports {
  return new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } }).exports as Exports
}
