import { type Command, type CommandName, commands } from './commands.ts'
import { environmentName, type FlagName, flags } from './flags.ts'

/** `moesh --help`. */
export function overview(version: string): string {
  const width = Math.max(...Object.keys(commands).map((name) => name.length))
  const lines = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`)
  return [
    `moesh ${version}: an inference cluster for open-weight Mixture-of-Experts models`,
    '',
    'Usage: moesh COMMAND …',
    '',
    ...lines,
    '',
    'Each command explains itself with --help. Every flag --some-flag can also be set as MOESH_SOME_FLAG.',
    '',
  ].join('\n')
}

/** `moesh COMMAND --help`. */
export function commandHelp(name: CommandName): string {
  const command: Command = commands[name]
  const usage = command.flags.map(usageOf)
  const width = Math.max(...usage.map(({ length }) => length))
  const lines = command.flags.map((flagName, index) => {
    const shown = defaultOf(command, flagName)
    const more = shown === '' ? '' : ` (default: ${shown})`
    return `  ${(usage[index] ?? '').padEnd(width)}  ${flags[flagName].help}${more}`
  })
  return [
    `Usage: moesh ${[name, ...command.positionals].join(' ')} [flags]`,
    '',
    `${command.summary.charAt(0).toUpperCase()}${command.summary.slice(1)}.`,
    '',
    ...lines,
    '',
  ].join('\n')
}

/** `docs/cli.md`: the whole reference. */
export function reference(): string {
  const sections = Object.entries<Command>(commands).flatMap(([name, command]) => [
    `## moesh ${[name, ...command.positionals].join(' ')}`,
    '',
    `${command.summary.charAt(0).toUpperCase()}${command.summary.slice(1)}.`,
    '',
    '| flag | environment | meaning | default |',
    '|---|---|---|---|',
    ...command.flags.map((flagName) =>
      [
        '',
        ` \`${usageOf(flagName).replaceAll('|', '\\|')}\` `,
        ` \`${environmentName(flagName)}\` `,
        ` ${flags[flagName].help} `,
        ` ${defaultOf(command, flagName)} `,
        '',
      ].join('|'),
    ),
    '',
  ])
  return [
    '# Command line',
    '',
    'Flags win over the environment. Exit status: 0 done, 1 failed, 2 wrong usage. Machine-readable output goes to',
    'stdout, all else to stderr. SIGTERM drains and exits 0; a second SIGTERM, or SIGINT twice, exits at once.',
    '',
    'This page is made from the same schema as `--help`: `npm run docs`.',
    '',
    ...sections,
  ].join('\n')
}

function usageOf(flagName: FlagName): string {
  const { kind } = flags[flagName]
  return kind.placeholder === '' ? `--${flagName}` : `--${flagName} ${kind.placeholder}`
}

function defaultOf({ defaults, described }: Command, flagName: FlagName): string {
  const value = defaults[flagName]
  if (value === false) return ''
  return value === undefined ? (described?.[flagName] ?? '') : String(value)
}
