import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import { z } from 'zod'
import { readTextFile } from './json-file.ts'

/**
 * Under which terms weights may be used: as their model card says, else as their licence file reads. Packing never
 * refuses a licence; it records what it found, and says so where the terms are not those of a permissive licence.
 */
export type LicenseInfo = {
  /** SPDX id where known, else the publisher's own name for it; "unknown" where nothing says. */
  license: string
  isPermissive: boolean
  /** The file that says so. */
  evidence: string | null
  /** What the user should know; null for permissive licences. */
  notice: string | null
  /** Licence texts, to be kept with the weights. */
  files: string[]
}

/** SPDX ids of licences that allow use, change and redistribution with attribution at most. */
const permissive: ReadonlySet<string> = new Set([
  '0BSD',
  'AFL-3.0',
  'Apache-2.0',
  'BSD-2-Clause',
  'BSD-3-Clause',
  'BSD-3-Clause-Clear',
  'BSL-1.0',
  'CC0-1.0',
  'CC-BY-2.0',
  'CC-BY-2.5',
  'CC-BY-3.0',
  'CC-BY-4.0',
  'CDLA-Permissive-1.0',
  'CDLA-Permissive-2.0',
  'ECL-2.0',
  'ISC',
  'MIT',
  'MIT-0',
  'MS-PL',
  'NCSA',
  'PDDL-1.0',
  'PostgreSQL',
  'Unlicense',
  'WTFPL',
  'Zlib',
])

/** Other SPDX ids that model cards use, so that they are spelled right. */
const restricted = [
  'AGPL-3.0',
  'CC-BY-NC-2.0',
  'CC-BY-NC-3.0',
  'CC-BY-NC-4.0',
  'CC-BY-NC-ND-4.0',
  'CC-BY-NC-SA-4.0',
  'CC-BY-ND-4.0',
  'CC-BY-SA-3.0',
  'CC-BY-SA-4.0',
  'EPL-2.0',
  'EUPL-1.1',
  'EUPL-1.2',
  'GPL-2.0',
  'GPL-3.0',
  'LGPL-2.1',
  'LGPL-3.0',
  'MPL-2.0',
]
const spdxByLowerCase = new Map([...permissive, ...restricted].map((id) => [id.toLowerCase(), id]))

/** Phrases of licence texts. */
const texts: readonly { pattern: RegExp; license: string }[] = [
  { pattern: /Apache License,?\s+Version 2\.0/i, license: 'Apache-2.0' },
  { pattern: /Permission is hereby granted, free of charge[\s\S]{0,600}?without restriction/i, license: 'MIT' },
  {
    pattern: /Redistribution and use in source and binary forms[\s\S]{0,2000}?Neither the name/i,
    license: 'BSD-3-Clause',
  },
  { pattern: /Redistribution and use in source and binary forms/i, license: 'BSD-2-Clause' },
  { pattern: /Creative Commons Attribution-NonCommercial 4\.0/i, license: 'CC-BY-NC-4.0' },
  { pattern: /Creative Commons Attribution-ShareAlike 4\.0/i, license: 'CC-BY-SA-4.0' },
  { pattern: /Creative Commons Attribution 4\.0/i, license: 'CC-BY-4.0' },
  { pattern: /LLAMA 2 COMMUNITY LICENSE/i, license: 'llama2' },
  { pattern: /LLAMA (3(?:\.\d)?|4) COMMUNITY LICENSE/i, license: 'llama$1' },
  { pattern: /Gemma Terms of Use/i, license: 'gemma' },
]

const cardSchema = z.looseObject({
  license: z.union([z.string(), z.array(z.string())]).nullish(),
  license_name: z.string().nullish(),
  license_link: z.string().nullish(),
  base_model: z.union([z.string(), z.array(z.string())]).nullish(),
})
export type ModelCard = z.infer<typeof cardSchema>

/** The front matter of README.md; empty where there is none that can be read. */
export function readModelCard(directory: string): ModelCard {
  const readme = readTextFile(join(directory, 'README.md')) ?? ''
  const [, matter] = /^\uFEFF?---\r?\n([\s\S]{0,65536}?)\r?\n---\s*(?:\n|$)/.exec(readme) ?? []
  if (matter === undefined) return {}
  try {
    return cardSchema.safeParse(parse(matter)).data ?? {}
  } catch {
    // A model card is for people; one that is not YAML says nothing, and the weights are fine all the same.
    return {}
  }
}

/** Model card first, then licence files, then config.json. */
export function findLicense(
  directory: string,
  card: ModelCard,
  config: Readonly<Record<string, unknown>>,
): LicenseInfo {
  const files = readdirSync(directory)
    .filter((name) => /^(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-].*)?$/i.test(name))
    .sort()
  const stated = [card.license ?? []].flat().filter((license) => license !== 'other')
  const named = stated.length > 0 ? stated.map(spdxId).join(' OR ') : (card.license_name ?? null)
  if (named !== null) return info(named, 'README.md', card.license_link ?? null, files)
  for (const file of files.filter((name) => !/^NOTICE/i.test(name))) {
    const text = readTextFile(join(directory, file)) ?? ''
    for (const { pattern, license } of texts) {
      const match = pattern.exec(text)
      if (match) return info(license.replace('$1', match[1] ?? ''), file, null, files)
    }
  }
  if (typeof config.license === 'string') return info(spdxId(config.license), 'config.json', null, files)
  return info('unknown', null, null, files)
}

function info(license: string, evidence: string | null, link: string | null, files: string[]): LicenseInfo {
  const isPermissive = license.split(' OR ').some((id) => permissive.has(id))
  return { license, isPermissive, evidence, notice: isPermissive ? null : notice(license, link), files }
}

function notice(license: string, link: string | null): string {
  if (license === 'unknown') return 'the checkpoint names no licence: ask its publisher before you use or pass it on'
  return `${license} is not a permissive licence: read its terms${link ? ` (${link})` : ''} before you use or pass the weights on`
}

function spdxId(license: string): string {
  return spdxByLowerCase.get(license.toLowerCase()) ?? license
}
