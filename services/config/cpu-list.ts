/** `0-3,8` → 0, 1, 2, 3, 8: how Linux and its tools name CPUs. undefined: not such a list. */
export function readCpuList(text: string): number[] | undefined {
  const cpus = new Set<number>()
  for (const part of text.split(',')) {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ?? []
    if (first === undefined || Number(last) < Number(first)) return undefined
    for (let cpu = Number(first); cpu <= Number(last); cpu++) cpus.add(cpu)
  }
  return [...cpus]
}
