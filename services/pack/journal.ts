import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'

/**
 * What of a pack was written already, one JSON document a line: first what is packed, then each finished unit with its
 * digest. It is a hint only: a resumed pack reads every unit back and believes the digest, so the journal needs no
 * flush of its own, and a torn last line costs one unit.
 */
export const journalName = 'pack-progress.jsonl'
/** Ending of the files of an unfinished pack. */
export const partialSuffix = '.partial'

const headSchema = z.strictObject({
  formatVersion: z.int(),
  tool: z.string(),
  fingerprint: z.string(),
  format: z.string(),
})
const unitSchema = z.strictObject({ file: z.string(), unit: z.int(), sha256: z.string() })
export type JournalHead = z.infer<typeof headSchema>

export class Journal {
  readonly #path: string
  readonly #digests = new Map<string, string>()

  /** Takes up the journal of the same pack, if there is one: `isResumed` says whether. */
  readonly isResumed: boolean

  constructor(directory: string, head: JournalHead) {
    this.#path = join(directory, journalName)
    const lines = existsSync(this.#path) ? readFileSync(this.#path, 'utf8').split('\n') : []
    this.isResumed = isSame(headSchema.safeParse(parse(lines[0])).data, head)
    if (this.isResumed) {
      for (const line of lines.slice(1)) {
        const entry = unitSchema.safeParse(parse(line))
        if (entry.success) this.#digests.set(`${entry.data.file}/${entry.data.unit}`, entry.data.sha256)
      }
      // A torn line must not swallow the next one.
      if (lines.at(-1) !== '') appendFileSync(this.#path, '\n')
    } else {
      writeFileSync(this.#path, `${JSON.stringify(head)}\n`)
    }
  }

  /** The digest of a unit that was finished. */
  digest(file: string, unit: number): string | undefined {
    return this.#digests.get(`${file}/${unit}`)
  }

  add(file: string, unit: number, sha256: string): void {
    appendFileSync(this.#path, `${JSON.stringify({ file, unit, sha256 })}\n`)
  }

  remove(): void {
    rmSync(this.#path, { force: true })
  }
}

function parse(line: string | undefined): unknown {
  try {
    return JSON.parse(line ?? '')
  } catch {
    return undefined
  }
}

function isSame(found: JournalHead | undefined, head: JournalHead): boolean {
  return (
    found !== undefined &&
    found.formatVersion === head.formatVersion &&
    found.tool === head.tool &&
    found.fingerprint === head.fingerprint &&
    found.format === head.format
  )
}
