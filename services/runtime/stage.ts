import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/**
 * A directory for session files, below one that several processes may share. What a killed process left behind is
 * removed by the next one.
 */
export function createStage(parent: string): string {
  mkdirSync(parent, { recursive: true })
  for (const name of readdirSync(parent)) {
    const pid = Number(/^stage-(\d+)-/.exec(name)?.[1])
    if (Number.isInteger(pid) && !isAlive(pid)) rmSync(join(parent, name), { recursive: true, force: true })
  }
  return mkdtempSync(join(parent, `stage-${process.pid}-`))
}

export function removeStage(directory: string): void {
  rmSync(directory, { recursive: true, force: true })
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // Somebody else's process: not ours to judge.
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
