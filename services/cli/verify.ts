import { readFile } from 'node:fs/promises'
import { MoeshError } from '../config/errors.ts'
import type { OptionsOf } from '../config/options.ts'
import { verifyPack } from '../pack/verify.ts'
import { createLogger } from '../telemetry/log.ts'
import { formatBytes } from './bytes.ts'
import { ProgressBar } from './progress.ts'

/** `moesh verify PACK`. Errors: those of `verifyPack` and of the model; FILE_UNREADABLE. */
export async function runVerify(pack: string, options: OptionsOf<'verify'>, signal: AbortSignal): Promise<void> {
  const bar = new ProgressBar('reading', process.stderr)
  const verified = await verifyPack(pack, (progress) => bar.update(progress), signal).finally(() => bar.end())
  const summary = `${pack} is whole: ${verified.files} files, ${verified.shards} shards, ${formatBytes(verified.bytes)}, digest ${verified.digest.slice(0, 16)}\n`
  if (options.perplexity === undefined) {
    process.stdout.write(options.json ? `${JSON.stringify(verified)}\n` : summary)
    return
  }
  process.stderr.write(summary)
  const text = await readText(options.perplexity)
  const [{ openLocal }, { perplexity }] = await Promise.all([import('./local.ts'), import('./perplexity.ts')])
  const log = createLogger({ level: options.logLevel, format: options.logFormat })
  const { client, close } = await openLocal(pack, { ...options, log })
  try {
    const showsProgress = process.stderr.isTTY
    const result = await perplexity(
      client,
      text,
      options,
      (done, all) => {
        if (showsProgress) process.stderr.write(`\r\x1b[2Kwindow ${done} of ${all}${done === all ? '\n' : ''}`)
      },
      signal,
    )
    process.stdout.write(
      options.json
        ? `${JSON.stringify(result)}\n`
        : `perplexity ${result.perplexity.toFixed(4)} over ${result.tokens} tokens, in windows of ${options.window}\n`,
    )
  } finally {
    await close()
  }
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    throw new MoeshError('FILE_UNREADABLE', `--perplexity: ${file} cannot be read`, 'check the path', { cause })
  }
}
