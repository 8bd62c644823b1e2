import { describe, type ModelDescription } from '../pack/describe.ts'
import { formatBytes, formatCount } from './bytes.ts'

export type InspectCommandOptions = {
  path: string
  /** What a node has for shards; usual sizes if missing. */
  memoryBytes?: number
  json: boolean
  stdout?: { write(text: string): unknown }
}

/** `moesh inspect PATH`. Throws `MoeshError`. */
export function runInspect({ path, memoryBytes, json, stdout = process.stdout }: InspectCommandOptions): void {
  const description = describe(path, memoryBytes)
  stdout.write(json ? `${JSON.stringify(description)}\n` : renderDescription(description))
}

/** For people; no wider than 100 columns but for long paths. */
export function renderDescription(model: ModelDescription): string {
  const { architecture: a, parameters, license } = model
  const lines: [string, string][] = [
    [model.kind, model.path],
    ['name', model.name],
    ['architecture', `${model.family}: ${layersText(a)}`],
    ['attention', attentionText(a)],
    ['vocabulary', `${a.vocabulary}${a.tiedEmbeddings ? ', head shared with the embedding' : ''}`],
    ['context', `${a.contextLength} tokens`],
    ['parameters', `${formatCount(parameters.total)} in all, ${formatCount(parameters.active)} active per token`],
    ...(model.weightFormat ? ([['format', model.weightFormat]] satisfies [string, string][]) : []),
    ['tensors', model.tensors.map(({ dtype, count, bytes }) => `${count} ${dtype} (${formatBytes(bytes)})`).join(', ')],
    ['tokenizer', `${model.tokenizer ? 'yes' : 'none'}, chat template: ${model.chatTemplate ? 'yes' : 'none'}`],
    ['licence', `${license.id}${license.isPermissive ? ' (permissive)' : ''}`],
    ...(license.notice ? ([['', license.notice]] satisfies [string, string][]) : []),
    ['source', model.source],
    ...(model.digest ? ([['digest', model.digest]] satisfies [string, string][]) : []),
  ]
  const head = lines.map(([label, text]) => `${label.padEnd(14)}${text}\n`).join('')
  return `${head}\n${filesText(model)}\n${sizesText(model)}`
}

function layersText(a: ModelDescription['architecture']): string {
  const layers = `${a.layers} layers of ${a.hidden}`
  if (a.experts === null) return `${layers}, dense`
  return `${layers}, ${a.moeLayers} with ${a.experts} experts (${a.expertInner} wide), ${a.expertsPerToken} per token`
}

function attentionText(a: ModelDescription['architecture']): string {
  const window = a.window === null ? '' : `, window ${a.window}`
  return `${a.heads} query and ${a.kvHeads} key-value heads of ${a.headDim}${window}`
}

/** Files listed one by one; a model of many shards is cut. */
const filesShownMax = 12

function filesText({ files }: ModelDescription): string {
  const width = Math.max(...files.map(({ name }) => name.length))
  const shown = files.slice(0, filesShownMax).map(({ name, bytes, sha256 }) => {
    return `${name.padEnd(width)}  ${formatBytes(bytes).padStart(9)}${sha256 ? `  sha256 ${sha256.slice(0, 16)}` : ''}\n`
  })
  const more = files.length > filesShownMax ? `and ${files.length - filesShownMax} more files\n` : ''
  return shown.join('') + more
}

function sizesText({ sizes, kind }: ModelDescription): string {
  const memory = sizes[0]?.nodes.map(({ memoryBytes }) => formatBytes(memoryBytes)) ?? []
  const header = ['format', 'coordinator', 'experts', 'one shard', ...memory.map((size) => `nodes ${size}`)]
  const rows = sizes.map((size) => [
    size.format,
    formatBytes(size.coordinatorBytes),
    formatBytes(size.expertBytes),
    size.shardCount === 0 ? '-' : formatBytes(size.shardBytes),
    ...size.nodes.map(({ nodes }) => (nodes === null ? 'too small' : nodes === 0 ? '-' : `${nodes}`)),
  ])
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const line = (cells: readonly string[]) =>
    `${cells
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd()}\n`
  const title = kind === 'pack' ? 'memory of the weights' : 'memory of the weights, packed'
  return `${title}; nodes: expert nodes with that much for shards, one copy of each\n${[header, ...rows].map(line).join('')}`
}
