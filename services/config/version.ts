import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'

/** What peers must agree on to understand each other's frames: those with another number do not talk to each other. */
export const protocolVersion = 1

/** Of this program, as package.json says. */
export const version: string = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(join(import.meta.dirname, '..', '..', 'package.json'), 'utf8'))).version
