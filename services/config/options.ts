import { parseArgs } from 'node:util'
import { type Command, type CommandName, commands } from './commands.ts'
import { MoeshError } from './errors.ts'
import { environmentName, type Flag, type FlagName, flags, type ValueOf } from './flags.ts'
import { readValue } from './values.ts'

type CamelCase<S extends string> = S extends `${infer Head}-${infer Tail}` ? `${Head}${Capitalize<CamelCase<Tail>>}` : S
type FlagsOf<C extends CommandName> = (typeof commands)[C]['flags'][number]
type Given<C extends CommandName> = keyof (typeof commands)[C]['defaults']

/** The options of a command by their names in code (`maxTokens`); undefined only where the command has no default. */
export type OptionsOf<C extends CommandName> = {
  [F in FlagsOf<C> as CamelCase<F>]: F extends Given<C> ? ValueOf<F> : ValueOf<F> | undefined
}

export type Invocation<C extends CommandName> =
  | { kind: 'help' }
  | { kind: 'run'; options: OptionsOf<C>; positionals: string[] }

/**
 * Reads what a command was given: flags win over the environment, which wins over defaults; an empty variable counts as
 * not set. Errors: USAGE, naming the flag or variable and what is allowed.
 */
export function readOptions<C extends CommandName>(
  name: C,
  args: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): Invocation<C> {
  const command: Command = commands[name]
  const { given, positionals, wantsHelp } = readArguments(name, command, args)
  if (wantsHelp) return { kind: 'help' }
  checkPositionals(name, command, positionals)
  const options: Record<string, unknown> = {}
  for (const flagName of command.flags) {
    options[camelCase(flagName)] =
      givenValue(flagName, given.get(flagName), environment) ?? command.defaults[flagName] ?? undefined
  }
  // Each flag of the command was read by its own kind just now.
  return { kind: 'run', options: options as OptionsOf<C>, positionals }
}

function givenValue(
  flagName: FlagName,
  texts: readonly string[] | undefined,
  environment: Readonly<Record<string, string | undefined>>,
): unknown {
  const flag: Flag = flags[flagName]
  if (texts !== undefined) {
    const values = texts.map((text) => readValue(flag.kind, `--${flagName}`, text))
    return flag.isList ? values.flat() : values.at(-1)
  }
  const variable = environmentName(flagName)
  const text = environment[variable]
  return text === undefined || text === '' ? undefined : readValue(flag.kind, variable, text)
}

function readArguments(name: CommandName, command: Command, args: readonly string[]) {
  const known = Object.fromEntries(
    command.flags.map((flagName) => [flagName, { type: flags[flagName].isSwitch ? 'boolean' : 'string' } as const]),
  )
  const { tokens } = parseArgs({
    args: [...args],
    options: { ...known, help: { type: 'boolean', short: 'h' } },
    strict: false,
    tokens: true,
  })
  const given = new Map<FlagName, string[]>()
  const positionals: string[] = []
  let wantsHelp = false
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    if (token.name === 'help') {
      wantsHelp = true
      continue
    }
    const flagName = command.flags.find((candidate) => candidate === token.name)
    if (flagName === undefined) throw unknownFlag(name, command, token.rawName)
    const text = flags[flagName].isSwitch ? (token.value ?? 'true') : token.value
    if (text === undefined || (!token.inlineValue && text.startsWith('--'))) {
      throw usage(name, `--${flagName} needs a value: --${flagName} ${flags[flagName].kind.placeholder}`)
    }
    given.set(flagName, [...(given.get(flagName) ?? []), text])
  }
  return { given, positionals, wantsHelp }
}

function checkPositionals(name: CommandName, { positionals }: Command, given: readonly string[]): void {
  const missing = positionals.slice(given.length).find((positional) => !positional.startsWith('['))
  if (missing !== undefined) throw usage(name, `${missing} is missing`)
  const surplus = given[positionals.length]
  if (surplus !== undefined) throw usage(name, `there is no place for "${surplus}"`)
}

function unknownFlag(name: CommandName, command: Command, rawName: string): MoeshError {
  const wanted = rawName.replace(/^-+/, '')
  const near = command.flags.find((flagName) => flagName.startsWith(wanted) || wanted.startsWith(flagName))
  return usage(name, `there is no flag ${rawName}${near === undefined ? '' : ` (did you mean --${near}?)`}`)
}

function usage(name: CommandName, message: string): MoeshError {
  return new MoeshError('USAGE', `moesh ${name}: ${message}`, `see "moesh ${name} --help"`)
}

function camelCase(flagName: string): string {
  return flagName.replaceAll(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())
}
