// Writes docs/cli.md: `npm run docs`.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { reference } from '../config/help.ts'

const docs = join(import.meta.dirname, '..', '..', 'docs')
mkdirSync(docs, { recursive: true })
writeFileSync(join(docs, 'cli.md'), reference())
