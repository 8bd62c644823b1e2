import { type ServerDuplexStream, status, type UntypedServiceImplementation } from '@grpc/grpc-js'
import { loadFileDescriptorSetFromBuffer } from '@grpc/proto-loader'
import { z } from 'zod'
import { MoeshError } from '../../config/errors.ts'

/**
 * Server reflection (grpc.reflection.v1 and v1alpha, which are the same on the wire): the files of the descriptor set as
 * they are, byte for byte. The library for it encodes descriptors anew from proto-loader's view, which loses map entries
 * and `optional`, and strict clients (Python's) refuse the result.
 */
export function reflectionHandlers(descriptorSet: Buffer): UntypedServiceImplementation {
  const files = splitFiles(descriptorSet)
  return {
    ServerReflectionInfo: (call: ServerDuplexStream<unknown, object>) => {
      call.on('data', (message: unknown) => {
        const request = requestSchema.parse(message)
        call.write({ valid_host: request.host, original_request: message, ...answer(files, request) })
      })
      call.on('end', () => call.end())
    },
  }
}

const requestSchema = z.object({
  host: z.string(),
  file_by_filename: z.string().optional(),
  file_containing_symbol: z.string().optional(),
  list_services: z.string().optional(),
})

type ProtoFile = { name: string; bytes: Buffer; imports: string[]; symbols: Set<string>; services: string[] }

function answer(files: readonly ProtoFile[], request: z.infer<typeof requestSchema>): object {
  if (request.list_services !== undefined) {
    const names = files.flatMap(({ services }) => services).sort()
    return { list_services_response: { service: names.map((name) => ({ name })) } }
  }
  const { file_by_filename: name, file_containing_symbol: symbol } = request
  const found = name !== undefined ? files.find((file) => file.name === name) : fileOf(files, symbol ?? '')
  if (found === undefined) {
    const message = `there is no ${name !== undefined ? `file ${name}` : `symbol ${symbol ?? ''}`}`
    return { error_response: { error_code: status.NOT_FOUND, error_message: message } }
  }
  return { file_descriptor_response: { file_descriptor_proto: withImports(files, found).map(({ bytes }) => bytes) } }
}

/** Methods, fields and nested types stand within a message or service, whose name theirs begins with. */
function fileOf(files: readonly ProtoFile[], symbol: string): ProtoFile | undefined {
  for (let name = symbol; name !== ''; name = name.slice(0, Math.max(0, name.lastIndexOf('.')))) {
    const found = files.find(({ symbols }) => symbols.has(name))
    if (found !== undefined) return found
  }
  return undefined
}

/** The file first, then what it needs. */
function withImports(files: readonly ProtoFile[], file: ProtoFile): ProtoFile[] {
  const found = new Set([file])
  // A set grows while it is walked, and is walked to its end.
  for (const { imports } of found) {
    for (const other of files) if (imports.includes(other.name)) found.add(other)
  }
  return [...found]
}

/** Field numbers of descriptor.proto. */
const fileField = { name: 1, dependency: 3 } as const

function splitFiles(descriptorSet: Buffer): ProtoFile[] {
  return lengthDelimited(descriptorSet).map(({ bytes, whole }) => {
    const fields = lengthDelimited(bytes)
    const texts = (number: number) => fields.filter((field) => field.number === number).map((field) => `${field.bytes}`)
    const definitions = loadFileDescriptorSetFromBuffer(whole)
    const services = Object.keys(definitions).filter((name) => !('format' in (definitions[name] ?? {})))
    return {
      name: texts(fileField.name)[0] ?? '',
      bytes,
      imports: texts(fileField.dependency),
      symbols: new Set(Object.keys(definitions)),
      services,
    }
  })
}

type Field = { number: number; bytes: Buffer; whole: Buffer }

/** The fields of a protobuf message that have a length; descriptors use no other wire types but varints. */
function lengthDelimited(message: Buffer): Field[] {
  const fields: Field[] = []
  let position = 0
  const varint = () => {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = message[position++]
      if (byte === undefined || shift > 28) throw invalidSet()
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
  }
  while (position < message.length) {
    const start = position
    const tag = varint()
    const value = varint()
    if (tag % 8 === 0) continue
    if (tag % 8 !== 2 || position + value > message.length) throw invalidSet()
    const bytes = message.subarray(position, position + value)
    position += value
    fields.push({ number: Math.floor(tag / 8), bytes, whole: message.subarray(start, position) })
  }
  return fields
}

function invalidSet(): MoeshError {
  return new MoeshError('INTERNAL', 'proto/descriptors.binpb is damaged', 'run "npm run protos"')
}
