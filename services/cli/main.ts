import { readFileSync } from 'node:fs'
import { type CommandName, commands, isCommandName } from '../config/commands.ts'
import { asMoeshError, MoeshError } from '../config/errors.ts'
import { commandHelp, overview } from '../config/help.ts'
import { type OptionsOf, readOptions } from '../config/options.ts'

/** The `moesh` command. Each command's file is loaded only when it is asked for: `--help` is answered at once. */
type Commands = {
  [C in CommandName]: (options: OptionsOf<C>, positionals: readonly string[]) => Promise<number>
}

const run: Commands = {
  serve: async (options, [model]) =>
    (await import('./serve.ts')).runServe({ ...options, model: model ?? options.model }),
  coordinator: async (options) => (await import('./coordinator.ts')).runCoordinator(options),
  expert: async (options) => (await import('./expert.ts')).runExpert(options),
  pack: async ({ format, name, json }, [checkpoint = '', pack = '']) => {
    const { runPack } = await import('./pack.ts')
    await runPack({ checkpoint, pack, format, json, signal: interrupted(), ...(name === undefined ? {} : { name }) })
    return 0
  },
  inspect: async ({ memory, json }, [path = '']) => {
    const { runInspect } = await import('./inspect.ts')
    runInspect({ path, json, ...(memory === undefined ? {} : { memoryBytes: memory }) })
    return 0
  },
  verify: async (options, [pack = '']) => {
    await (await import('./verify.ts')).runVerify(pack, options, interrupted())
    return 0
  },
  generate: async (options, [prompt = '']) =>
    (await import('./generate.ts')).runGenerate(prompt, options, interrupted()),
  status: async (options) => {
    await (await import('./status.ts')).runStatus(options, interrupted())
    return 0
  },
  bench: async (options) => {
    await (await import('./bench.ts')).runBench(options, interrupted())
    return 0
  },
  drain: async (options, [node = '']) => {
    await (await import('./drain.ts')).runDrain(node, options)
    return 0
  },
  undrain: async (options, [node = '']) => {
    await (await import('./drain.ts')).runUndrain(node, options)
    return 0
  },
  rebalance: async (options) => {
    await (await import('./rebalance.ts')).runRebalance(options)
    return 0
  },
}

/** The first Ctrl-C ends what runs in good order, a second one at once. */
function interrupted(): AbortSignal {
  const controller = new AbortController()
  process.once('SIGINT', () => controller.abort())
  process.once('SIGTERM', () => controller.abort())
  return controller.signal
}

async function runCommand<C extends CommandName>(name: C, args: readonly string[]): Promise<number> {
  const invocation = readOptions(name, args, process.env)
  if (invocation.kind === 'help') {
    process.stdout.write(commandHelp(name))
    return 0
  }
  return run[name](invocation.options, invocation.positionals)
}

async function main([name = '', ...args]: readonly string[]): Promise<number> {
  if (name === '--version') {
    process.stdout.write(`${version()}\n`)
    return 0
  }
  if (name === '' || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(overview(version()))
    return name === '' ? 2 : 0
  }
  if (isCommandName(name)) return runCommand(name, args)
  throw new MoeshError('USAGE', `there is no command "${name}"`, `there is ${Object.keys(commands).join(', ')}`)
}

function version(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return /"version": "([^"]+)"/.exec(text)?.[1] ?? 'unknown'
}

/** One sentence for people; a defect of ours also says where. */
function report(thrown: unknown): number {
  const error = asMoeshError(thrown)
  process.stderr.write(`moesh: ${error.message}\n`)
  if (error.code === 'INTERNAL')
    process.stderr.write(`${error.cause instanceof Error ? error.cause.stack : error.stack}\n`)
  return error.code === 'USAGE' ? 2 : 1
}

// A reader that went away (`moesh status | head -1`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

const exitStatus = await main(process.argv.slice(2)).catch(report)
// Results leave through a pipe before the process does; whatever else is open belongs to nobody any more.
process.stdout.write('', () => process.exit(exitStatus))
