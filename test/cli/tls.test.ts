import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ApiClient } from '../../services/cli/client.ts'
import { openSecurity } from '../../services/config/tls.ts'
import { type ApiServer, startApi } from '../../services/coordinator/api/server.ts'
import { createMemoryJournal } from '../../services/coordinator/journal.ts'
import { Authority, hasOpenssl } from '../config/authority.ts'
import { fakeEngine, fakeModel, noCluster } from '../coordinator/fakes.ts'

describe.skipIf(!hasOpenssl())('with certificates (skipped without openssl)', () => {
  const directory = mkdtempSync(join(tmpdir(), 'moesh-cli-tls-'))
  let server: ApiServer
  let options: (role: string) => { tlsCert: string; tlsKey: string; tlsCa: string }

  beforeAll(async () => {
    const authority = new Authority(directory)
    options = (role) => {
      const { certFile, keyFile, caFile } = authority.issue(role, [`DNS:${role}.moesh.internal`])
      return { tlsCert: certFile, tlsKey: keyFile, tlsCa: caFile }
    }
    const report = () => {}
    const listen = '127.0.0.1:0'
    server = await startApi({
      listen,
      security: await openSecurity({ role: 'coordinator', ...options('coordinator'), listen: [listen], report }),
      models: () => [fakeModel(fakeEngine(() => Buffer.from('text')))],
      cluster: noCluster,
      journal: createMemoryJournal({ keepMs: 1000, requestsMax: 10, nowMs: () => 0 }),
      report,
    })
  })
  afterAll(() => {
    server.close()
    rmSync(directory, { recursive: true })
  })

  test.each([
    { role: 'client', answer: { models: [{ id: 'bytes' }] } },
    { role: 'coordinator', answer: { models: [{ id: 'bytes' }] } },
    { role: 'expert', answer: null },
  ])('a certificate for $role is let in or not', async ({ role, answer }) => {
    const client = await ApiClient.open({ server: server.address, ...options(role) })
    const call = client.call('moesh.v1.Inference/ListModels', {})
    if (answer !== null) expect(await call).toMatchObject(answer)
    else await expect(call).rejects.toThrow(/a certificate for expert may not do this/)
    client.close()
  })

  test('without one there is no connection', async () => {
    const none = { tlsCert: undefined, tlsKey: undefined, tlsCa: undefined }
    const client = await ApiClient.open({ server: server.address, ...none })
    await expect(client.call('moesh.v1.Inference/ListModels', {})).rejects.toThrow(/no coordinator answers/)
    client.close()
  })
})
