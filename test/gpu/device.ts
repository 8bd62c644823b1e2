import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { asMoeshError } from '../../services/config/errors.ts'
import type { WeightFormat } from '../../services/model/format.ts'
import { expertNumerics } from '../../services/runtime/canary.ts'
import type { Provider } from '../../services/runtime/session.ts'

/** Whether expert graphs of a format run on a provider here; if not, the refusal that a process would end with. */
export type Probe = { runs: true; numerics: string } | { runs: false; code: string; why: string }

export function probe(provider: Provider, format: WeightFormat): Probe {
  const stageDir = mkdtempSync(join(tmpdir(), 'moesh-gpu-'))
  try {
    return { runs: true, numerics: expertNumerics({ stageDir, provider, avoidSaturation: false, format }) }
  } catch (thrown) {
    const { code, message } = asMoeshError(thrown)
    return { runs: false, code, why: message }
  } finally {
    rmSync(stageDir, { recursive: true, force: true })
  }
}
