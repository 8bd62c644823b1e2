import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts'
import { MoeshError } from '../config/errors.ts'
import { countParameters } from '../model/family.ts'
import type { WeightFormat } from '../model/format.ts'
import { Journal, partialSuffix } from './journal.ts'
import { lockPack } from './lock.ts'
import { type Manifest, manifestSchema, packFormatVersion, type ShardEntry, type TensorEntry } from './manifest.ts'
import { OutputFile } from './output-file.ts'
import { type PlannedFile, planPack } from './plan.ts'
import { manifestName, openPack } from './reader.ts'
import { packTool } from './tool.ts'
import { type PackMemory, UnitWriter } from './unit-writer.ts'

export type PackProgress = { bytesDone: number; bytesTotal: number }

export type PackOptions = {
  format: WeightFormat
  /** The model's id in the API; the checkpoint's directory name if missing. */
  name?: string
  /** Called often, at most once for a few megabytes; what was resumed counts as done. */
  onProgress?: (progress: PackProgress) => void
  signal?: AbortSignal
  /** Less is slower; the pack's bytes are the same. */
  memory?: PackMemory
}

export type PackResult = {
  manifest: Manifest
  /** SHA-256 of manifest.json: the model's identity. */
  digest: string
  /** Bytes that an interrupted run had written already. */
  bytesResumed: number
  /** The directory held this very pack before; nothing was written. */
  wasFinished: boolean
  /** On licences that are not permissive. */
  notice: string | null
}

/**
 * Converts a checkpoint to a pack. Everything is written to `NAME.partial`, renamed when whole, and the manifest comes
 * last, so an interrupted pack is never taken for a finished one; the next call goes on with it. Memory stays bounded,
 * and the same checkpoint gives the same bytes on every machine. Throws CHECKPOINT_INVALID and MODEL_UNSUPPORTED for
 * the checkpoint, PACK_INVALID and FILE_UNWRITABLE for the directory, CANCELLED by the signal.
 */
export async function packCheckpoint(
  checkpointDir: string,
  packDir: string,
  options: PackOptions,
): Promise<PackResult> {
  const checkpoint = openCheckpoint(checkpointDir)
  try {
    mkdirSync(packDir, { recursive: true })
    if (realpathSync(packDir) === realpathSync(checkpointDir)) {
      throw new MoeshError('PACK_INVALID', `${packDir} is the checkpoint itself`, 'name another directory for the pack')
    }
    const unlock = lockPack(packDir)
    try {
      return finishedPack(checkpoint, packDir, options) ?? (await writePack(checkpoint, packDir, options))
    } finally {
      unlock()
    }
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error
    const hint = 'check its place and permissions, then pack again: it goes on from here'
    throw new MoeshError('FILE_UNWRITABLE', `packing into ${packDir} failed: ${error.message}`, hint, { cause: error })
  } finally {
    checkpoint.close()
  }
}

/** The pack that stands there already. Throws PACK_INVALID where it is another one. */
function finishedPack(checkpoint: Checkpoint, packDir: string, options: PackOptions): PackResult | undefined {
  if (!existsSync(join(packDir, manifestName))) return undefined
  const { manifest, digest } = openPack(packDir)
  const isSame =
    manifest.provenance.contentFingerprint === checkpoint.contentFingerprint &&
    manifest.weightFormat === options.format &&
    manifest.name === (options.name ?? checkpoint.name)
  if (!isSame) {
    throw new MoeshError(
      'PACK_INVALID',
      `${packDir} already holds another pack: ${manifest.name} in ${manifest.weightFormat}`,
      'name another directory, or remove this one',
    )
  }
  return { manifest, digest, bytesResumed: 0, wasFinished: true, notice: checkpoint.license.notice }
}

async function writePack(checkpoint: Checkpoint, packDir: string, options: PackOptions): Promise<PackResult> {
  const { format, signal, onProgress } = options
  const { spec } = checkpoint.model
  const embedding = checkpoint.weights.tensor(checkpoint.model.sources('embed').tensors[0] ?? '')
  const plan = planPack(spec, format, checkpoint.weights.dtype(embedding))
  const bytesTotal = plan.reduce((sum, { bytes }) => sum + bytes, 0)
  const journal = new Journal(packDir, {
    formatVersion: packFormatVersion,
    tool: packTool,
    fingerprint: checkpoint.fingerprint,
    format,
  })
  if (!journal.isResumed) removeParts(packDir, plan)
  checkRoom(packDir, plan, bytesTotal)

  const progress = { bytesDone: 0, bytesTotal }
  let current: OutputFile | undefined
  const onChunk = () => {
    if (signal?.aborted)
      throw new MoeshError('CANCELLED', `packing ${packDir} was interrupted`, 'pack again: it goes on from here')
    onProgress?.({ bytesTotal, bytesDone: progress.bytesDone + (current?.position ?? 0) })
  }
  const writer = new UnitWriter(checkpoint, format, onChunk, options.memory)
  const files: Manifest['files'] = []
  const digests: string[][] = []
  let bytesResumed = 0
  for (const planned of plan) {
    current = startFile(packDir, planned)
    try {
      const written = await writeFile(planned, current, journal, writer, onChunk)
      bytesResumed += written.bytesResumed
      digests.push(written.digests)
      files.push({ name: planned.name, ...current.finish() })
      progress.bytesDone += planned.bytes
    } finally {
      current.close()
      current = undefined
    }
    renameSync(join(packDir, planned.name + partialSuffix), join(packDir, planned.name))
    onChunk()
  }
  files.push(...copyFiles(checkpoint, packDir))
  const manifest = manifestSchema.parse(manifestOf(checkpoint, options, plan, files, digests))
  const digest = writeManifest(packDir, manifest)
  journal.remove()
  return { manifest, digest, bytesResumed, wasFinished: false, notice: checkpoint.license.notice }
}

/** Opens `NAME.partial`; a file that was whole already goes back to that name to be read again. */
function startFile(packDir: string, { name }: PlannedFile): OutputFile {
  const path = join(packDir, name)
  if (existsSync(path)) renameSync(path, path + partialSuffix)
  return new OutputFile(path + partialSuffix)
}

/** Keeps the units that are there, writes the others; returns the digest of each. */
async function writeFile(
  planned: PlannedFile,
  file: OutputFile,
  journal: Journal,
  writer: UnitWriter,
  onChunk: () => void,
): Promise<{ digests: string[]; bytesResumed: number }> {
  const digests: string[] = []
  for (const unit of planned.units) {
    const sha256 = journal.digest(planned.name, digests.length)
    if (sha256 === undefined || !file.keep(unit, sha256)) break
    digests.push(sha256)
    onChunk()
  }
  const bytesResumed = file.position
  file.truncate()
  for (const [index, unit] of planned.units.entries()) {
    if (index < digests.length) continue
    file.beginUnit(unit)
    await writer.write(unit, file)
    const sha256 = file.endUnit()
    digests.push(sha256)
    journal.add(planned.name, index, sha256)
  }
  if (file.position !== planned.bytes) {
    throw new MoeshError('INTERNAL', `${planned.name} has ${file.position} bytes, planned were ${planned.bytes}`)
  }
  return { digests, bytesResumed }
}

/** What another, interrupted pack left there. */
function removeParts(packDir: string, plan: readonly PlannedFile[]): void {
  for (const { name } of plan) {
    rmSync(join(packDir, name), { force: true })
    rmSync(join(packDir, name + partialSuffix), { force: true })
  }
}

/** Spares a pack that has no chance; what an interrupted one holds already counts. */
function checkRoom(packDir: string, plan: readonly PlannedFile[], bytesTotal: number): void {
  const { bavail, bsize } = statfsSync(packDir)
  const present = plan
    .flatMap(({ name }) => [join(packDir, name), join(packDir, name + partialSuffix)])
    .reduce((sum, path) => sum + (statSync(path, { throwIfNoEntry: false })?.size ?? 0), 0)
  if (bavail * bsize + present < bytesTotal) {
    throw new MoeshError(
      'PACK_INVALID',
      `${packDir} has room for ${bavail * bsize} bytes, the pack takes ${bytesTotal - present} more`,
      'make room, or name a directory on another disk',
    )
  }
}

/** Tokenizer, templates and licence texts. */
function copyFiles(checkpoint: Checkpoint, packDir: string): Manifest['files'] {
  const { tokenizer, license, directory } = checkpoint
  const names = [tokenizer.tokenizerJson, tokenizer.tokenizerConfigJson, ...license.files].filter(
    (name) => name !== null,
  )
  return names.map((name) => {
    const path = join(packDir, name)
    const content = readFileSync(join(directory, name))
    writeFileSync(path + partialSuffix, content)
    renameSync(path + partialSuffix, path)
    return { name, bytes: content.length, sha256: sha256(content) }
  })
}

function manifestOf(
  checkpoint: Checkpoint,
  options: PackOptions,
  plan: readonly PlannedFile[],
  files: Manifest['files'],
  digests: readonly string[][],
): Manifest {
  const { spec } = checkpoint.model
  const { tokenizer, license } = checkpoint
  const tensors: TensorEntry[] = []
  const shards: ShardEntry[] = []
  for (const [fileIndex, { name: file, units }] of plan.entries()) {
    for (const [index, unit] of units.entries()) {
      if (unit.kind === 'shard') {
        const { layer, expert, offset, bytes } = unit
        shards.push({ layer, expert, file, offset, bytes, sha256: digests[fileIndex]?.[index] ?? '' })
      } else {
        tensors.push(
          ...unit.parts.map(({ name, dtype, shape, offset, bytes }) => ({ name, file, offset, bytes, dtype, shape })),
        )
      }
    }
  }
  const { tokenizerJson, tokenizerConfigJson } = tokenizer
  return {
    formatVersion: packFormatVersion,
    tool: packTool,
    name: options.name ?? checkpoint.name,
    weightFormat: options.format,
    spec,
    parameters: countParameters(spec),
    license: license.license,
    source: checkpoint.source,
    provenance: {
      ...checkpoint.provenance,
      contentFingerprint: checkpoint.contentFingerprint,
      license: { evidence: license.evidence, isPermissive: license.isPermissive, notice: license.notice },
    },
    generation: checkpoint.generation,
    tokenizer: tokenizerJson === null ? null : { tokenizerJson, tokenizerConfigJson },
    chatTemplate: tokenizer.chatTemplate,
    files,
    tensors,
    shards,
  }
}

/** Atomically: the rename makes the pack valid. */
function writeManifest(packDir: string, manifest: Manifest): string {
  const content = Buffer.from(`${JSON.stringify(manifest)}\n`)
  const path = join(packDir, manifestName)
  const partial = path + partialSuffix
  writeFileSync(partial, content)
  flush(partial)
  renameSync(partial, path)
  flush(packDir)
  return sha256(content)
}

function flush(path: string): void {
  const fd = openSync(path, 'r')
  fsyncSync(fd)
  closeSync(fd)
}

function sha256(content: Uint8Array): string {
  return createHash('sha256').update(content).digest('hex')
}
