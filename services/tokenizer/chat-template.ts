import { Template } from '@huggingface/jinja'
import { MoeshError } from '../config/errors.ts'

/** OpenAI-style: role, content, and whatever a template asks for (`tool_calls`, `reasoning_content`, …). */
export type ChatMessage = { role: string; content: string; [key: string]: unknown }

export type ChatInput = {
  messages: readonly ChatMessage[]
  /** OpenAI-style objects; none: null. */
  tools: readonly unknown[] | null
  /** Further variables of the template. */
  kwargs: Readonly<Record<string, unknown>>
  /** Go on with the last message instead of beginning an answer. */
  continueFinal: boolean
}

/** A model's chat template (Jinja), with the texts of its special tokens. */
export class ChatTemplate {
  readonly #source: string
  readonly #specialTokens: Readonly<Record<string, string>>
  #template: Template | null = null

  constructor(source: string, specialTokens: Readonly<Record<string, string>>) {
    this.#source = source
    this.#specialTokens = specialTokens
  }

  /** The prompt as text. Throws INVALID_ARGUMENT for what the template refuses, PACK_INVALID where it cannot be read. */
  render({ messages, tools, kwargs, continueFinal }: ChatInput): string {
    if (messages.length === 0)
      throw new MoeshError('INVALID_ARGUMENT', 'chat.messages is empty', 'send at least one message')
    const template = this.#parsed()
    let rendered: string
    try {
      rendered = template.render({
        ...this.#specialTokens,
        ...kwargs,
        messages,
        tools: tools ?? null,
        documents: kwargs.documents ?? null,
        add_generation_prompt: !continueFinal,
      })
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause)
      throw new MoeshError('INVALID_ARGUMENT', `the model's chat template refuses the messages: ${reason}`, '', {
        cause,
      })
    }
    return continueFinal ? upToFinal(rendered, messages.at(-1)?.content ?? '') : rendered
  }

  #parsed(): Template {
    try {
      this.#template ??= new Template(this.#source)
      return this.#template
    } catch (cause) {
      throw new MoeshError('PACK_INVALID', "the model's chat template cannot be read", 'send the prompt as text', {
        cause,
      })
    }
  }
}

/** Cuts what the template put behind the last message; templates may trim the message itself. */
function upToFinal(rendered: string, content: string): string {
  const trimmed = content.trim()
  const at = rendered.lastIndexOf(trimmed)
  if (trimmed === '' || at < 0) {
    throw new MoeshError(
      'INVALID_ARGUMENT',
      "the model's chat template does not show the last message, so it cannot be continued",
    )
  }
  const untrimmed = content.trimStart()
  return rendered.slice(0, at) + (rendered.startsWith(untrimmed, at) ? untrimmed : trimmed)
}
