/** What a metrics port tells, by name and labels as they are written. */
export async function readMetrics(address: string): Promise<Map<string, number>> {
  const response = await fetch(`http://${address}/metrics`)
  if (!response.ok) throw new Error(`${address} answers ${response.status}`)
  const lines = (await response.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(' ')
      return [line.slice(0, at), Number(line.slice(at + 1))]
    }),
  )
}
