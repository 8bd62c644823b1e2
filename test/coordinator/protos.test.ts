import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client, credentials } from '@grpc/grpc-js'
import { fromJSON } from '@grpc/proto-loader'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openSecurity } from '../../services/config/tls.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { noCluster } from './fakes.ts'

const root = join(import.meta.dirname, '..', '..')

test('the descriptor set is what "npm run protos" makes of the protos', () => {
  const directory = mkdtempSync(join(tmpdir(), 'moesh-protos-'))
  const file = join(directory, 'descriptors.binpb')
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const [, ...words] = scripts.protos.replace('proto/descriptors.binpb', file).split(' ')
  const done = spawnSync(process.execPath, words, { cwd: root, encoding: 'utf8' })
  expect(done.stderr).toBe('')
  expect(readFileSync(file).equals(readFileSync(join(root, 'proto/descriptors.binpb')))).toBe(true)
  rmSync(directory, { recursive: true })
})

const contract = join(root, '..', 'shared', 'api', 'moesh', 'v1')
test.skipIf(!existsSync(contract)).each(['inference.proto', 'cluster.proto'])(
  '%s is the public contract, unchanged (skipped where ../shared is missing)',
  (name) => {
    expect(readFileSync(join(root, 'proto/moesh/v1', name), 'utf8')).toBe(readFileSync(join(contract, name), 'utf8'))
  },
)

describe('server reflection', () => {
  let server: ApiServer
  let client: Client

  beforeAll(async () => {
    const listen = '127.0.0.1:0'
    const report = () => {}
    server = await startApi({
      listen,
      security: await openSecurity({ role: 'coordinator', listen: [listen], report }),
      models: () => [],
      cluster: noCluster,
      journal: createMemoryJournal({ keepMs: 1, requestsMax: 1, nowMs: () => 0 }),
      report,
    })
    client = new Client(server.address, credentials.createInsecure())
  })
  afterAll(() => {
    client.close()
    server.close()
  })

  /** The little of the reflection protocol that is asked here. */
  const reflection = fromJSON(
    {
      nested: {
        Request: {
          fields: { file_containing_symbol: { type: 'string', id: 4 }, list_services: { type: 'string', id: 7 } },
        },
        Response: {
          fields: {
            file_descriptor_response: { type: 'Files', id: 4 },
            list_services_response: { type: 'Services', id: 6 },
            error_response: { type: 'Failure', id: 7 },
          },
        },
        Files: { fields: { file_descriptor_proto: { rule: 'repeated', type: 'bytes', id: 1 } } },
        Services: { fields: { service: { rule: 'repeated', type: 'Name', id: 1 } } },
        Name: { fields: { name: { type: 'string', id: 1 } } },
        Failure: { fields: { error_message: { type: 'string', id: 2 } } },
        Reflection: {
          methods: {
            Ask: {
              comment: '',
              requestType: 'Request',
              responseType: 'Response',
              requestStream: true,
              responseStream: true,
            },
          },
        },
      },
    },
    { keepCase: true, defaults: true },
  )

  // biome-ignore lint/suspicious/noExplicitAny: messages of the small definition above
  function ask(version: string, request: object): Promise<any> {
    const service = reflection.Reflection
    if (service === undefined || 'format' in service || service.Ask === undefined) throw new Error('no definition')
    const { requestSerialize, responseDeserialize } = service.Ask
    const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`
    return new Promise((resolve, reject) => {
      const call = client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize)
      call.on('data', resolve)
      call.on('error', reject)
      call.write(request)
      call.end()
    })
  }

  test.each(['v1', 'v1alpha'])('%s lists the services and gives descriptors byte for byte', async (version) => {
    const { list_services_response: list } = await ask(version, { list_services: '*' })
    const names = list.service.map(({ name }: { name: string }) => name).sort()
    expect(names).toEqual([
      'grpc.health.v1.Health',
      'grpc.reflection.v1.ServerReflection',
      'grpc.reflection.v1alpha.ServerReflection',
      'moesh.v1.Cluster',
      'moesh.v1.Inference',
      'moesh.v1.Profiling',
    ])
    const set = readFileSync(join(root, 'proto/descriptors.binpb'))
    for (const symbol of [...names, 'moesh.v1.Event', 'moesh.v1.Node.Role', 'moesh.v1.Inference.Generate']) {
      const { file_descriptor_response: files } = await ask(version, { file_containing_symbol: symbol })
      expect(files.file_descriptor_proto).toHaveLength(1)
      // As the protobuf compiler made it, with map entries, optional fields and syntax.
      for (const file of files.file_descriptor_proto) expect(set.includes(file)).toBe(true)
    }
    const { error_response: error } = await ask(version, { file_containing_symbol: 'other.v1.Thing' })
    expect(error.error_message).toBe('there is no symbol other.v1.Thing')
  })
})
