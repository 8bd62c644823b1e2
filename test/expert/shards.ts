import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import type { ShardRef } from '../../services/expert/shard-cache.ts'

/** Bytes that no two shards share. */
export function shardBytes(salt: number, bytes: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + salt * 7 + (i >> 8)) & 255))
}

export function refOf(content: Uint8Array): ShardRef {
  return { sha256: createHash('sha256').update(content).digest('hex'), bytes: content.length }
}

/** A directory that is gone when the test is over. */
export function temporaryDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), 'moesh-test-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** Where spilled shards go in tests. */
export function spillIn(root: string): string {
  const dir = join(root, 'spill')
  mkdirSync(dir, { recursive: true })
  return dir
}

/** A source that gives `content` in small chunks, remembers from where it was asked, and may break off. */
export class TestSource {
  readonly offsets: number[] = []
  readonly #content: Uint8Array
  /** Breaks off in front of this byte. */
  breaksAt = Number.POSITIVE_INFINITY

  constructor(content: Uint8Array) {
    this.#content = content
  }

  readonly bytes = (offset: number): AsyncIterable<Uint8Array> => {
    this.offsets.push(offset)
    return this.#chunks(offset)
  }

  async *#chunks(offset: number): AsyncIterable<Uint8Array> {
    for (let at = offset; at < this.#content.length; at += 100) {
      if (at >= this.breaksAt) throw new Error('the source broke off')
      yield this.#content.subarray(at, at + 100)
    }
  }
}
