import type { WeightFormat } from '../model/format.ts'
import { packCheckpoint } from '../pack/pack.ts'
import { formatBytes, formatCount } from './bytes.ts'
import { ProgressBar, type ProgressStream } from './progress.ts'

export type PackCommandOptions = {
  checkpoint: string
  pack: string
  format: WeightFormat
  /** The model's id; the checkpoint's directory name if missing. */
  name?: string
  json: boolean
  signal?: AbortSignal
  stdout?: { write(text: string): unknown }
  stderr?: ProgressStream
}

/** `moesh pack CHECKPOINT PACK --format F`. Throws `MoeshError`; the caller prints it and exits with 1. */
export async function runPack(options: PackCommandOptions): Promise<void> {
  const { checkpoint, pack, format, name, json, signal, stdout = process.stdout, stderr = process.stderr } = options
  const bar = new ProgressBar(`packing ${format}`, stderr)
  const result = await packCheckpoint(checkpoint, pack, {
    format,
    onProgress: (progress) => bar.update(progress),
    ...(name === undefined ? {} : { name }),
    ...(signal === undefined ? {} : { signal }),
  }).finally(() => bar.end())
  const { manifest, digest, bytesResumed, wasFinished, notice } = result
  const bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0)
  if (json) {
    const { name: id, license, parameters } = manifest
    stdout.write(
      `${JSON.stringify({ pack, name: id, format, digest, bytes, bytesResumed, wasFinished, license, notice, parameters })}\n`,
    )
    return
  }
  if (bytesResumed > 0)
    stderr.write(`went on with an interrupted pack: ${formatBytes(bytesResumed)} were there already\n`)
  if (notice !== null) stderr.write(`licence: ${notice}\n`)
  stdout.write(
    `${wasFinished ? 'already packed' : 'packed'} ${manifest.name} (${manifest.spec.family}, ${formatCount(manifest.parameters.total)} parameters, ` +
      `${format}, licence ${manifest.license}) into ${pack}: ${formatBytes(bytes)}, digest ${digest.slice(0, 16)}\n`,
  )
}
