import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ServiceDefinition, UntypedServiceImplementation } from '@grpc/grpc-js'
import { loadFileDescriptorSetFromBuffer, type PackageDefinition } from '@grpc/proto-loader'
import { MoeshError } from '../../config/errors.ts'

/**
 * The public protos, from the descriptor set that `npm run protos` makes and that server reflection hands out. Read from
 * it, maps appear as what they are on the wire, lists of `{ key, value }`.
 * Field names are as in the protos, 64-bit integers decimal strings, enums their names; what is unset has its default,
 * but for messages (null) and `optional` fields (absent).
 */
export function loadProtos(): PackageDefinition {
  return loadFileDescriptorSetFromBuffer(readDescriptorSet(), {
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  })
}

export function readDescriptorSet(): Buffer {
  return readFileSync(join(import.meta.dirname, '..', '..', '..', 'proto', 'descriptors.binpb'))
}

/** `name` as in `moesh.v1.Inference`. */
export function serviceDefinition(
  protos: PackageDefinition,
  name: string,
): ServiceDefinition<UntypedServiceImplementation> {
  const definition = protos[name]
  if (definition === undefined || 'format' in definition) {
    throw new MoeshError('INTERNAL', `proto/descriptors.binpb has no service ${name}`, 'run "npm run protos"')
  }
  // proto-loader's service definition is the shape that grpc-js takes; only their declarations differ.
  return definition as ServiceDefinition<UntypedServiceImplementation>
}
