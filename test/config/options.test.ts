import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type Command, type CommandName, commands } from '../../services/config/commands.ts'
import { flags } from '../../services/config/flags.ts'
import { commandHelp, reference } from '../../services/config/help.ts'
import { readOptions } from '../../services/config/options.ts'
import { size } from '../../services/config/values.ts'

const root = join(import.meta.dirname, '..', '..')

function options<C extends CommandName>(name: C, args: string[], environment: Record<string, string> = {}) {
  const invocation = readOptions(name, args, environment)
  if (invocation.kind === 'help') throw new Error('asked for help')
  return invocation
}

describe('options', () => {
  test('flags win over the environment, which wins over defaults; an empty variable is none', () => {
    const environment = { MOESH_GRPC: '0.0.0.0:1', MOESH_RANKS: '4', MOESH_ZONE: '', MOESH_INSECURE: 'true' }
    const { options: read, positionals } = options('serve', ['--ranks', '2', 'some/dir', '--memory=8GiB'], environment)
    expect(positionals).toEqual(['some/dir'])
    expect(read).toMatchObject({
      grpc: '0.0.0.0:1',
      ranks: 2,
      memory: 8 * 2 ** 30,
      store: 'memory:',
      format: 'int8',
      insecure: true,
      logLevel: 'info',
    })
    expect(read.zone).toBeUndefined()
    expect(options('expert', []).options).toMatchObject({ grpc: '127.0.0.1:0', lease: 3, cluster: 'default' })
    expect(options('generate', ['p', '--stop', 'a', '--stop', 'b', '--temperature', '0.5']).options).toMatchObject({
      stop: ['a', 'b'],
      temperature: 0.5,
    })
  })

  test.each([
    {
      command: 'serve',
      args: ['--ranks', 'zero'],
      says: '--ranks: "zero" is not allowed; it must be a whole number from 1 to 1024',
    },
    { command: 'serve', args: ['--ranks', '0'], says: '--ranks: "0"' },
    { command: 'serve', args: ['--ranks'], says: '--ranks needs a value: --ranks N' },
    { command: 'serve', args: ['--ranks', '--insecure'], says: '--ranks needs a value' },
    { command: 'serve', args: ['--rank', '3'], says: 'there is no flag --rank (did you mean --ranks?)' },
    { command: 'serve', args: ['a', 'b'], says: 'there is no place for "b"; see "moesh serve --help"' },
    {
      command: 'serve',
      args: ['--insecure=maybe'],
      says: '--insecure: "maybe" is not allowed; it must be true or false',
    },
    {
      command: 'serve',
      args: ['--provider', 'tpu'],
      says: '"tpu" is not allowed; it must be one of cpu, webgpu, cuda',
    },
    {
      command: 'coordinator',
      args: ['--grpc', 'localhost'],
      says: '--grpc: "localhost" is not allowed; it must be HOST:PORT',
    },
    { command: 'coordinator', args: ['--grpc', '[::1]:70000'], says: 'port from 0 to 65535' },
    { command: 'coordinator', args: ['--memory', '3'], says: 'there is no flag --memory' },
    { command: 'expert', args: ['--advertise', 'a:0'], says: 'port from 1 to 65535' },
    { command: 'expert', args: ['--memory', '8Gi'], says: 'a size such as 512MiB, 8GiB or 1.5GB' },
    { command: 'expert', args: ['--store', 'postgres://x'], says: 'memory:, redis://HOST:PORT or rediss://HOST:PORT' },
    { command: 'expert', args: ['--lease', '0.5'], says: 'a number from 1 to 3600' },
    { command: 'pack', args: ['a'], says: 'moesh pack: PACK is missing' },
    { command: 'generate', args: ['p', '--seed', '18446744073709551616'], says: '--seed: ' },
    { command: 'generate', args: ['p', '--temperature', '-1'], says: '--temperature: "-1" is not allowed' },
  ] as const)('$command $args is refused', ({ command, args, says }) => {
    expect(() => readOptions(command, args, {})).toThrow(says)
  })

  test('a variable is named where it is wrong, and a password is never shown', () => {
    expect(() => options('serve', [], { MOESH_KV_MEMORY: 'much' })).toThrow('MOESH_KV_MEMORY: "much" is not allowed')
    expect(() => options('expert', ['--store', 'http://:secret@host'])).toThrow('http://***@host')
  })

  test.each([
    ['512MiB', 512 * 2 ** 20],
    ['8GiB', 8 * 2 ** 30],
    ['1.5GB', 1.5e9],
    ['100', 100],
    ['2 KiB', 2048],
    ['0', undefined],
    ['-1GiB', undefined],
    ['1e9', undefined],
    ['9999999TiB', undefined],
  ])('size %s is %s', (text, bytes) => {
    expect(size.read(text)).toBe(bytes)
  })

  test('--help is answered whatever else is given', () => {
    expect(readOptions('pack', ['--help'], {})).toEqual({ kind: 'help' })
    expect(commandHelp('expert')).toMatch(/^Usage: moesh expert \[flags\]/)
  })
})

describe('documentation', () => {
  test('docs/cli.md is what "npm run docs" writes', () => {
    expect(readFileSync(join(root, 'docs/cli.md'), 'utf8')).toBe(reference())
  })

  const contract = join(root, '..', 'shared', 'api', 'README.md')
  test.skipIf(!existsSync(contract))(
    'every command and flag of the contract is there (skipped without ../shared)',
    () => {
      const text = readFileSync(contract, 'utf8')
      const promised = new Set([...text.matchAll(/`--([a-z][a-z-]+)/g)].map(([, name]) => name))
      promised.delete('some-flag')
      promised.delete('help')
      const known: string[] = Object.keys(flags)
      expect([...promised].filter((name) => !known.includes(name ?? ''))).toEqual([])
      for (const [, name = ''] of text.matchAll(/^\| `moesh ([a-z]+)/gm)) expect(Object.keys(commands)).toContain(name)
    },
  )

  test('every flag that README.md names exists', () => {
    const text = readFileSync(join(root, 'README.md'), 'utf8')
    const known = new Set<string>([...Object.keys(flags), 'help', 'version'])
    for (const [line, command = ''] of text.matchAll(/^.*(?:bin\/moesh|moesh) ([a-z]+) .*$/gm)) {
      const definition: Command | undefined = Object.entries(commands).find(([name]) => name === command)?.[1]
      if (definition === undefined) continue
      for (const [, name = ''] of line.matchAll(/ --([a-z][a-z-]+)/g)) {
        expect(known).toContain(name)
        expect([...definition.flags, 'help']).toContain(name)
      }
    }
  })

  test('each command explains each of its flags', () => {
    for (const name of Object.keys(commands) as CommandName[]) {
      const help = commandHelp(name)
      for (const flagName of commands[name].flags) expect(help).toContain(`--${flagName}`)
    }
  })
})
