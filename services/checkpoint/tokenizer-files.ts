import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { MoeshError } from '../config/errors.ts'
import { readJsonFile, readTextFile } from './json-file.ts'

const templates = z.union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))])
const schema = z.looseObject({ chat_template: templates.nullish() })

export type TokenizerFiles = {
  /** File names in the checkpoint's directory; null where it has no tokenizer.json. */
  tokenizerJson: string | null
  tokenizerConfigJson: string | null
  /** Jinja. */
  chatTemplate: string | null
}

/** Finds the tokenizer and the chat template: a file of its own wins over tokenizer_config.json. */
export function findTokenizerFiles(directory: string): TokenizerFiles {
  const has = (name: string) => existsSync(join(directory, name))
  const config = readJsonFile(join(directory, 'tokenizer_config.json'), schema)
  const chatTemplate =
    readTextFile(join(directory, 'chat_template.jinja')) ??
    chosenTemplate(readJsonFile(join(directory, 'chat_template.json'), schema)?.chat_template) ??
    chosenTemplate(config?.chat_template)
  if (!has('tokenizer.json') && has('tokenizer.model')) {
    throw new MoeshError(
      'CHECKPOINT_INVALID',
      `${directory} has tokenizer.model but no tokenizer.json`,
      'save the tokenizer in its fast form (tokenizer.json) beside the weights',
    )
  }
  return {
    tokenizerJson: has('tokenizer.json') ? 'tokenizer.json' : null,
    tokenizerConfigJson: config ? 'tokenizer_config.json' : null,
    chatTemplate: chatTemplate ?? null,
  }
}

/** Some checkpoints have several, by name: the one without tools, documents and the like is called "default". */
function chosenTemplate(value: z.infer<typeof templates> | null | undefined): string | undefined {
  if (value == null || typeof value === 'string') return value ?? undefined
  return (value.find(({ name }) => name === 'default') ?? value[0])?.template
}
