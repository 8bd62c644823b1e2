import { formatBytes, formatSeconds } from './bytes.ts'

/** A terminal or file that progress is written to. */
export type ProgressStream = { write(text: string): unknown; isTTY?: boolean; columns?: number }

export type Progress = { bytesDone: number; bytesTotal: number }

/** A terminal's line is drawn this often; a log gets a line this often. */
const drawEveryMs = 100
const logEveryMs = 10_000
/** The rate is an average over about this long, so that it follows what happens and does not flicker. */
const rateOverMs = 3000

/**
 * Draws progress: a bar with bytes, rate and time left on a terminal, a line now and then elsewhere. Call `update` as
 * often as you like, `end` once, whether it went well or not.
 */
export class ProgressBar {
  readonly #stream: ProgressStream
  readonly #label: string
  readonly #nowMs: () => number
  #drawnMs = Number.NEGATIVE_INFINITY
  #last: { atMs: number; bytes: number } | null = null
  /** Bytes a second; null until there are two readings. */
  #rate: number | null = null
  #progress: Progress | null = null

  constructor(label: string, stream: ProgressStream, nowMs: () => number = () => performance.now()) {
    this.#label = label
    this.#stream = stream
    this.#nowMs = nowMs
  }

  update(progress: Progress): void {
    const nowMs = this.#nowMs()
    this.#progress = progress
    if (nowMs - this.#drawnMs < (this.#stream.isTTY ? drawEveryMs : logEveryMs)) return
    this.#measure(nowMs, progress.bytesDone)
    this.#drawnMs = nowMs
    this.#draw(progress)
  }

  /** Leaves the last state on the screen. */
  end(): void {
    if (this.#progress === null) return
    this.#measure(this.#nowMs(), this.#progress.bytesDone)
    this.#draw(this.#progress)
    if (this.#stream.isTTY) this.#stream.write('\n')
    this.#progress = null
  }

  #measure(nowMs: number, bytes: number): void {
    const last = this.#last
    this.#last = { atMs: nowMs, bytes }
    if (last === null || nowMs <= last.atMs) return
    const rate = ((bytes - last.bytes) * 1000) / (nowMs - last.atMs)
    const weight = this.#rate === null ? 1 : 1 - Math.exp(-(nowMs - last.atMs) / rateOverMs)
    this.#rate = (this.#rate ?? 0) * (1 - weight) + rate * weight
  }

  #draw(progress: Progress): void {
    const line = progressLine(this.#label, progress, this.#rate, this.#stream.columns ?? 80)
    this.#stream.write(this.#stream.isTTY ? `\r\x1b[2K${line}` : `${line}\n`)
  }
}

/** `packing ▕██████░░░░▏ 61% 1.20 GiB of 1.97 GiB, 310 MiB/s, 3 s left`, no wider than `columns`. */
export function progressLine(
  label: string,
  { bytesDone, bytesTotal }: Progress,
  rate: number | null,
  columns: number,
): string {
  const share = bytesTotal === 0 ? 1 : Math.min(1, bytesDone / bytesTotal)
  const numbers = [`${Math.floor(share * 100)}% ${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`]
  if (rate !== null) numbers.push(`${formatBytes(rate)}/s`)
  if (rate !== null && rate > 0 && bytesDone < bytesTotal) {
    numbers.push(`${formatSeconds((bytesTotal - bytesDone) / rate)} left`)
  }
  const text = numbers.join(', ')
  const width = Math.min(40, columns - label.length - text.length - 5)
  if (width < 5) return `${label} ${text}`.slice(0, Math.max(0, columns - 1))
  const filled = Math.round(share * width)
  return `${label} ▕${'█'.repeat(filled)}${'░'.repeat(width - filled)}▏ ${text}`
}
