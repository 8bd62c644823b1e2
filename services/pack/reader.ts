import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { MoeshError } from '../config/errors.ts'
import type { Dtype } from '../model/format.ts'
import { moeLayers } from '../model/spec.ts'
import { coordinatorTensors, shardLayout, tensorAlignment } from '../model/tensors.ts'
import { journalName, partialSuffix } from './journal.ts'
import { type Manifest, manifestSchema, type ShardEntry } from './manifest.ts'
import { shardAlignment, storedParts, tensorBytes } from './plan.ts'
import { PackTensors } from './tensors.ts'

export const manifestName = 'manifest.json'
/** 128 layers of 512 experts take about 15 MB. */
const manifestBytesMax = 128 * 1024 * 1024
/** A finished pack: its tensors, its shards, and what its manifest says. */
export class PackReader extends PackTensors {
  readonly manifest: Manifest
  /** SHA-256 of manifest.json: the model's identity in a cluster. */
  readonly digest: string
  readonly #shards: ReadonlyMap<string, ShardEntry>

  constructor(dir: string, manifest: Manifest, digest: string) {
    super(dir, manifest.tensors)
    this.manifest = manifest
    this.digest = digest
    this.#shards = new Map(manifest.shards.map((shard) => [shardKey(shard.layer, shard.expert), shard]))
  }

  /** Throws PACK_INVALID, naming it. */
  shard(layer: number, expert: number): ShardEntry {
    const shard = this.#shards.get(shardKey(layer, expert))
    if (shard) return shard
    throw new MoeshError(
      'PACK_INVALID',
      `pack ${this.dir} has no shard L${layer}/E${expert}`,
      'pack the checkpoint again',
    )
  }

  /** The whole shard, laid out as `shardLayout` says. */
  readShard(layer: number, expert: number): Buffer<ArrayBuffer> {
    const { file, offset, bytes } = this.shard(layer, expert)
    return this.read(file, offset, bytes)
  }
}

/**
 * Opens a pack: its manifest is read and everything that it says is compared with the files' sizes and with what the
 * model needs. Contents are not read; `verifyPack` does. Throws PACK_INVALID.
 */
export function openPack(dir: string): PackReader {
  const content = readManifest(dir)
  let value: unknown
  try {
    value = JSON.parse(content.toString('utf8'))
  } catch (cause) {
    throw new MoeshError('PACK_INVALID', `${join(dir, manifestName)} is not valid JSON`, packAgain, { cause })
  }
  const read = manifestSchema.safeParse(value)
  if (!read.success) {
    const [issue] = read.error.issues
    const where = issue?.path.join('.') || 'the document'
    throw new MoeshError('PACK_INVALID', `${join(dir, manifestName)}: ${where}: ${issue?.message ?? ''}`, packAgain)
  }
  const pack = new PackReader(dir, read.data, createHash('sha256').update(content).digest('hex'))
  const sizes = checkFiles(pack)
  checkTensors(pack, sizes)
  checkShards(pack, sizes)
  return pack
}

const packAgain = 'pack the checkpoint again'

/** Whether a directory is a pack, or was going to be one. */
export function looksLikePack(dir: string): boolean {
  return existsSync(join(dir, manifestName)) || existsSync(join(dir, journalName))
}

function readManifest(dir: string): Buffer {
  const path = join(dir, manifestName)
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) {
    const names = existsSync(dir) && statSync(dir).isDirectory() ? readdirSync(dir) : undefined
    if (names === undefined) throw invalid(dir, 'is not a directory', 'name the directory of a pack')
    const isUnfinished = names.includes(journalName) || names.some((name) => name.endsWith(partialSuffix))
    throw isUnfinished
      ? invalid(
          dir,
          'is an unfinished pack: packing was interrupted',
          'run "moesh pack" again: it goes on where it stopped',
        )
      : invalid(dir, `is not a pack: it has no ${manifestName}`, 'make one with "moesh pack CHECKPOINT PACK"')
  }
  if (stat.size > manifestBytesMax)
    throw invalid(dir, `${manifestName} has ${stat.size} bytes, more than ${manifestBytesMax}`)
  return readFileSync(path)
}

/** Sizes by file name. */
function checkFiles({ dir, manifest }: PackReader): Map<string, number> {
  const sizes = new Map<string, number>()
  for (const { name, bytes } of manifest.files) {
    if (!/^[\w][\w.-]*$/.test(name))
      throw invalid(dir, `lists the file ${JSON.stringify(name)}, which is not of this directory`)
    if (sizes.has(name)) throw invalid(dir, `lists the file ${name} twice`)
    const size = statSync(join(dir, name), { throwIfNoEntry: false })?.size
    if (size === undefined) throw invalid(dir, `lacks the file ${name}`)
    if (size !== bytes) throw invalid(dir, `file ${name} has ${size} bytes instead of ${bytes}`)
    sizes.set(name, size)
  }
  const { tokenizer } = manifest
  for (const name of [tokenizer?.tokenizerJson, tokenizer?.tokenizerConfigJson]) {
    if (name != null && !sizes.has(name)) throw invalid(dir, `names the tokenizer file ${name}, which it does not list`)
  }
  return sizes
}

/** Every tensor that the model needs, in the right type, shape and place. */
function checkTensors(pack: PackReader, sizes: ReadonlyMap<string, number>): void {
  const { spec, weightFormat, tensors } = pack.manifest
  const embedding = pack.tensor('embed').dtype
  const wanted = coordinatorTensors(spec).flatMap((tensor) => storedParts(tensor, weightFormat, embedding))
  for (const { name, dtype, shape } of wanted) {
    const found = pack.tensor(name)
    if (found.dtype !== dtype || !sameShape(found.shape, shape)) {
      throw invalid(pack.dir, `tensor ${name} is ${typeName(found)}, the model needs ${typeName({ dtype, shape })}`)
    }
    if (found.bytes !== tensorBytes(found))
      throw invalid(pack.dir, `tensor ${name} has ${found.bytes} bytes for ${typeName(found)}`)
    checkPlace(pack.dir, `tensor ${name}`, found, tensorAlignment, sizes)
  }
  if (tensors.length !== wanted.length) {
    throw invalid(pack.dir, `has ${tensors.length} tensors, the model needs ${wanted.length}`)
  }
  checkOverlaps(
    pack.dir,
    tensors.map((tensor) => ({ ...tensor, what: `tensor ${tensor.name}` })),
  )
}

function checkShards(pack: PackReader, sizes: ReadonlyMap<string, number>): void {
  const { spec, weightFormat, shards } = pack.manifest
  let count = 0
  for (const { layer, ffn } of moeLayers(spec)) {
    const { bytes } = shardLayout(spec, ffn, weightFormat)
    for (let expert = 0; expert < ffn.experts; expert++) {
      const shard = pack.shard(layer, expert)
      if (shard.bytes !== bytes) {
        throw invalid(pack.dir, `shard L${layer}/E${expert} has ${shard.bytes} bytes, the model needs ${bytes}`)
      }
      checkPlace(pack.dir, `shard L${layer}/E${expert}`, shard, shardAlignment, sizes)
    }
    count += ffn.experts
  }
  if (shards.length !== count) throw invalid(pack.dir, `has ${shards.length} shards, the model needs ${count}`)
  checkOverlaps(
    pack.dir,
    shards.map((shard) => ({ ...shard, what: `shard L${shard.layer}/E${shard.expert}` })),
  )
}

type Place = { file: string; offset: number; bytes: number }

function checkPlace(
  dir: string,
  what: string,
  place: Place,
  alignment: number,
  sizes: ReadonlyMap<string, number>,
): void {
  const size = sizes.get(place.file)
  if (size === undefined) throw invalid(dir, `${what} is in ${place.file}, which the pack does not list`)
  if (place.offset % alignment !== 0)
    throw invalid(dir, `${what} begins at ${place.offset}, no multiple of ${alignment}`)
  if (place.offset + place.bytes > size) {
    throw invalid(dir, `${what} ends at byte ${place.offset + place.bytes} of ${place.file}, which has ${size}`)
  }
}

function checkOverlaps(dir: string, places: (Place & { what: string })[]): void {
  const ends = new Map<string, { end: number; what: string }>()
  for (const { file, offset, bytes, what } of places.sort((a, b) => a.offset - b.offset)) {
    const before = ends.get(file)
    if (before && offset < before.end) throw invalid(dir, `${what} overlaps ${before.what}`)
    ends.set(file, { end: offset + bytes, what })
  }
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis])
}

function typeName({ dtype, shape }: { dtype: Dtype; shape: readonly number[] }): string {
  return `${dtype} [${shape.join(', ')}]`
}

function shardKey(layer: number, expert: number): string {
  return `${layer}/${expert}`
}

function invalid(dir: string, what: string, hint = packAgain): MoeshError {
  return new MoeshError('PACK_INVALID', `pack ${dir} ${what}`, hint)
}
