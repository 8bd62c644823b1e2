import { linkSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { MoeshError } from '../config/errors.ts'

const lockName = 'pack.lock'
/** Locks of this process: after a restart its predecessor's lock may carry the same number. */
const heldHere = new Set<string>()

/**
 * Only one process may write a pack. The lock names its holder, so that what a killed one left behind is taken over.
 * Returns what gives it back. Throws PACK_INVALID while another holds it.
 */
export function lockPack(directory: string): () => void {
  const path = join(directory, lockName)
  const holder = `${hostname()} ${process.pid}`
  const draft = `${path}.${process.pid}`
  writeFileSync(draft, holder)
  try {
    // Linked, not created: the lock never stands there without its holder's name. Once more after a dead holder.
    if (!linkOnce(draft, path)) {
      const found = readHolder(path)
      if (isAlive(found, path)) throw isHeld(directory, found)
      rmSync(path, { force: true })
      if (!linkOnce(draft, path)) throw isHeld(directory, readHolder(path))
    }
  } finally {
    rmSync(draft, { force: true })
  }
  heldHere.add(path)
  return () => {
    heldHere.delete(path)
    rmSync(path, { force: true })
  }
}

function isHeld(directory: string, holder: string): MoeshError {
  const hint = `wait for it; if it is gone, remove ${join(directory, lockName)}`
  return new MoeshError('PACK_INVALID', `${directory} is being packed by another process (${holder})`, hint)
}

function linkOnce(draft: string, path: string): boolean {
  try {
    linkSync(draft, path)
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false
    throw error
  }
}

function readHolder(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return '' // given back meanwhile
  }
}

/** A holder on another machine is believed; one of this machine is looked for. */
function isAlive(holder: string, path: string): boolean {
  const [host = '', pid = ''] = holder.split(' ')
  if (host === '') return false
  if (host !== hostname()) return true
  if (Number(pid) === process.pid) return heldHere.has(path)
  try {
    process.kill(Number(pid), 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}
