import { MoeshError } from '../../config/errors.ts'
import type { Family, PublishedConfig } from '../family.ts'
import { llama } from './llama.ts'
import { mistral } from './mistral.ts'
import { mixtral } from './mixtral.ts'
import { olmoe } from './olmoe.ts'
import { qwen3 } from './qwen3.ts'
import { qwen3Moe } from './qwen3-moe.ts'

export const families: readonly Family[] = [llama, mistral, mixtral, olmoe, qwen3, qwen3Moe]

/** By `model_type`, else by `architectures`. Throws MODEL_UNSUPPORTED, listing the choices. */
export function familyOf(config: PublishedConfig): Family {
  const { modelType, architectures, path } = config
  const found =
    families.find(({ modelTypes }) => modelType !== null && modelTypes.includes(modelType)) ??
    families.find((family) => modelType === null && family.architectures.some((name) => architectures.includes(name)))
  // A model type may be shared by heads that do something else with it (classifiers, embedders).
  if (found && (architectures.length === 0 || found.architectures.some((name) => architectures.includes(name)))) {
    return found
  }
  const said = [
    modelType && `model_type ${modelType}`,
    architectures.length > 0 && `architecture ${architectures.join(', ')}`,
  ]
  throw new MoeshError(
    'MODEL_UNSUPPORTED',
    `${path}: ${said.filter(Boolean).join(', ') || 'no architecture'} is not supported`,
    `supported are ${families.flatMap((family) => family.architectures).join(', ')}`,
  )
}
