import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import type { Server as TcpServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { Client, Server, type ServiceError, status } from '@grpc/grpc-js'
import { Redis } from 'ioredis'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Role, readTlsMaterial, roleNames, type TlsFiles } from '../../services/config/credentials.ts'
import { isLoopback, openSecurity, requireLoopback, roleInterceptor, type Security } from '../../services/config/tls.ts'
import { Authority, hasOpenssl } from './authority.ts'

const identity = { serialize: (value: Buffer) => value, deserialize: (bytes: Buffer) => bytes }
const echoPath = '/moesh.test.Echo/Echo'
const echoService = {
  Echo: {
    path: echoPath,
    requestStream: false,
    responseStream: false,
    requestSerialize: identity.serialize,
    requestDeserialize: identity.deserialize,
    responseSerialize: identity.serialize,
    responseDeserialize: identity.deserialize,
  },
} as const

describe('listening', () => {
  it.each([
    ['127.0.0.1:0', true],
    ['127.9.9.9:50051', true],
    ['[::1]:50051', true],
    ['localhost:50051', true],
    ['unix:/run/moesh.sock', true],
    ['0.0.0.0:50051', false],
    ['[::]:50051', false],
    ['10.0.0.1:50051', false],
    ['127.example.com:50051', false],
    [':50051', false],
  ])('%s is loopback: %s', (address, expected) => {
    expect(isLoopback(address)).toBe(expected)
  })

  it('beyond loopback without TLS is refused, and the refusal says what to do', () => {
    expect(() => requireLoopback('0.0.0.0:50051', false)).toThrow(/--tls-cert.*--insecure/)
    expect(() => requireLoopback('0.0.0.0:50051', true)).not.toThrow()
  })

  it('flags that do not fit together are refused', async () => {
    const base = { role: 'expert', listen: ['127.0.0.1:0'], report: () => {} } as const
    await expect(openSecurity({ ...base, tlsCert: 'a', tlsKey: 'b' })).rejects.toThrow('--tls-ca is missing')
    await expect(openSecurity({ ...base, tlsKey: 'b' })).rejects.toThrow('--tls-cert and --tls-ca are missing')
    await expect(openSecurity({ ...base, tlsCert: 'a', tlsKey: 'b', tlsCa: 'c', insecure: true })).rejects.toThrow(
      'exclude each other',
    )
  })
})

describe.skipIf(!hasOpenssl())('with certificates', () => {
  const folder = mkdtempSync(join(tmpdir(), 'moesh-tls-'))
  const closing: (() => void | Promise<void>)[] = []
  let authority: Authority
  let files: Record<Role, TlsFiles>

  beforeAll(() => {
    authority = new Authority(join(folder, 'ca'))
    files = {
      coordinator: authority.issue('coordinator', [`DNS:${roleNames.coordinator}`, 'DNS:localhost']),
      expert: authority.issue('expert', [`DNS:${roleNames.expert}`]),
      client: authority.issue('client', [`DNS:${roleNames.client}`]),
    }
  })
  afterEach(async () => {
    for (const close of closing.splice(0).reverse()) await close()
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  async function open(role: Role, from: TlsFiles = files[role], report: (error: Error) => void = () => {}) {
    const security = await openSecurity({
      role,
      tlsCert: from.certFile,
      tlsKey: from.keyFile,
      tlsCa: from.caFile,
      listen: ['0.0.0.0:0'],
      report,
      refreshEveryMs: 20,
    })
    closing.push(() => security.close())
    return security
  }

  async function serve(security: Security, roles: readonly Role[]): Promise<string> {
    const server = new Server({ interceptors: [roleInterceptor(security, { 'moesh.test.Echo': roles })] })
    server.addService(echoService, {
      Echo: (call: { request: Buffer }, done: (error: null, value: Buffer) => void) => done(null, call.request),
    })
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', security.serverCredentials(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    )
    closing.push(() => server.forceShutdown())
    return `127.0.0.1:${port}`
  }

  function echo(address: string, from: Security, to: Role): Promise<string> {
    const { credentials, options } = from.dial(to)
    const client = new Client(address, credentials, options)
    closing.push(() => client.close())
    return new Promise((resolve, reject) => {
      const settled = (error: ServiceError | null, value?: Buffer) => {
        client.close()
        error ? reject(error) : resolve(String(value))
      }
      client.makeUnaryRequest(
        echoPath,
        identity.serialize,
        identity.deserialize,
        Buffer.from('hello'),
        { deadline: Date.now() + 5_000 },
        settled,
      )
    })
  }

  it('the right role gets through, at an address that the certificate does not name', async () => {
    const address = await serve(await open('expert'), ['coordinator'])
    await expect(echo(address, await open('coordinator'), 'expert')).resolves.toBe('hello')
  })

  it('a client of the wrong role is refused before the handler', async () => {
    const address = await serve(await open('expert'), ['coordinator'])
    await expect(echo(address, await open('client'), 'expert')).rejects.toMatchObject({
      code: status.PERMISSION_DENIED,
      details: 'a certificate for client may not do this; it takes coordinator',
    })
  })

  it('a service that nobody opened is closed to all', async () => {
    const address = await serve(await open('expert'), [])
    await expect(echo(address, await open('coordinator'), 'expert')).rejects.toMatchObject({
      code: status.PERMISSION_DENIED,
    })
  })

  it('a server of the wrong role is not talked to', async () => {
    const address = await serve(await open('expert'), ['client'])
    await expect(echo(address, await open('client'), 'coordinator')).rejects.toMatchObject({
      code: status.UNAVAILABLE,
      details: expect.stringContaining('coordinator.moesh.internal'),
    })
  })

  it('a certificate of another authority, and none at all, get no connection', async () => {
    const address = await serve(await open('coordinator'), ['client'])
    const stranger = new Authority(join(folder, 'stranger'))
    const forged = { ...stranger.issue('forged', [`DNS:${roleNames.client}`]) }
    await expect(echo(address, await open('client', forged), 'coordinator')).rejects.toMatchObject({
      code: status.UNAVAILABLE,
    })
    const port = Number(address.split(':')[1])
    for (const pair of [{}, { cert: readFileSync(forged.certFile), key: readFileSync(forged.keyFile) }]) {
      await expect(handshake(port, { ca: readFileSync(authority.certFile), ...pair })).rejects.toThrow()
    }
  })

  it('a process refuses to start with a certificate of another role', async () => {
    await expect(open('coordinator', files.expert)).rejects.toThrow(
      /not for the role coordinator \(its roles: expert\).*DNS:coordinator\.moesh\.internal/,
    )
  })

  it('a wildcard or a subject name gives no role', async () => {
    const wildcard = authority.issue('wildcard', ['DNS:*.moesh.internal'])
    expect((await readTlsMaterial(wildcard, Date.now())).roles.size).toBe(0)
    const subject = authority.issue(roleNames.coordinator, ['DNS:other'])
    expect((await readTlsMaterial(subject, Date.now())).roles.size).toBe(0)
  })

  it('files that could not work are refused with the reason', async () => {
    const now = Date.now()
    const { coordinator, expert } = files
    const stranger = new Authority(join(folder, 'other'))
    const garbage = join(folder, 'garbage.pem')
    writeFileSync(garbage, 'not a certificate')
    const cases: [TlsFiles, RegExp][] = [
      [
        { ...coordinator, keyFile: expert.keyFile },
        /expert\.key is not the key of the certificate in .*coordinator\.crt/,
      ],
      [{ ...coordinator, caFile: stranger.certFile }, /was not issued by an authority of/],
      [{ ...coordinator, certFile: garbage }, /garbage\.pem holds no certificate/],
      [{ ...coordinator, keyFile: garbage }, /garbage\.pem holds no usable private key/],
      [{ ...coordinator, caFile: join(folder, 'absent') }, /absent cannot be read/],
    ]
    for (const [given, reason] of cases) await expect(readTlsMaterial(given, now)).rejects.toThrow(reason)
    await expect(readTlsMaterial(coordinator, now + 3 * 86_400_000)).rejects.toThrow(/expired on/)
  })

  it('new files are taken while running: new connections show them, calls go on, half a set changes nothing', async () => {
    const live = copies(files.expert, join(folder, 'live'))
    const problems: string[] = []
    const server = await open('expert', live, (error) => problems.push(error.message))
    const address = await serve(server, ['coordinator'])
    const port = Number(address.split(':')[1])
    const coordinator = await open('coordinator')
    const withPair = {
      ca: readFileSync(authority.certFile),
      cert: readFileSync(files.coordinator.certFile),
      key: readFileSync(files.coordinator.keyFile),
    }
    const before = await handshake(port, withPair)

    const renewed = authority.issue('renewed', [`DNS:${roleNames.expert}`])
    copyFileSync(renewed.certFile, live.certFile)
    await until(() => problems.length > 0)
    expect(problems).toEqual([expect.stringContaining('is not the key of the certificate')])
    expect(await handshake(port, withPair)).toBe(before)
    await expect(echo(address, coordinator, 'expert')).resolves.toBe('hello')

    copyFileSync(renewed.keyFile, live.keyFile)
    await until(async () => (await handshake(port, withPair)) !== before)
    await expect(echo(address, coordinator, 'expert')).resolves.toBe('hello')
    expect(problems.length).toBe(1)
  })

  it('a store over TLS is reached with the certificates of the moment, also after a reconnect', async () => {
    const live = copies(files.expert, join(folder, 'store'))
    const security = await open('expert', live)
    const store = await fakeRedis(authority.issue('redis', ['DNS:localhost', 'IP:127.0.0.1']), authority.certFile)
    closing.push(() => void store.server.close())
    const redis = new Redis(`rediss://:secret@127.0.0.1:${store.port}`, {
      tls: security.redisTls(),
      protocol: 2,
      enableReadyCheck: false,
      retryStrategy: () => 20,
    })
    redis.on('error', () => {})
    closing.push(() => redis.disconnect())
    await until(() => store.peers.length === 1)
    const renewed = authority.issue('renewed-store', [`DNS:${roleNames.expert}`])
    copyFileSync(renewed.keyFile, live.keyFile)
    copyFileSync(renewed.certFile, live.certFile)
    await until(() => {
      store.drop()
      return new Set(store.peers).size > 1
    })
    expect(store.peers.every((peer) => peer !== '')).toBe(true)
  })
})

function copies(from: TlsFiles, prefix: string): TlsFiles {
  const to = { certFile: `${prefix}.crt`, keyFile: `${prefix}.key`, caFile: from.caFile }
  copyFileSync(from.certFile, to.certFile)
  copyFileSync(from.keyFile, to.keyFile)
  return to
}

/** The server certificate's fingerprint, once the server has accepted ours too (with TLS 1.3 that is seen only after). */
function handshake(port: number, options: tls.ConnectionOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({
      port,
      host: '127.0.0.1',
      ALPNProtocols: ['h2'],
      checkServerIdentity: () => undefined,
      ...options,
    })
    socket.once('error', reject)
    socket.once('close', () => reject(new Error('closed by the server')))
    socket.once('data', () => {
      resolve(socket.getPeerCertificate().fingerprint256)
      socket.destroy()
    })
  })
}

async function fakeRedis(files: TlsFiles, caFile: string) {
  const peers: string[] = []
  const sockets = new Set<tls.TLSSocket>()
  const server: TcpServer = tls.createServer(
    {
      cert: readFileSync(files.certFile),
      key: readFileSync(files.keyFile),
      ca: readFileSync(caFile),
      requestCert: true,
      rejectUnauthorized: true,
    },
    (socket) => {
      peers.push(socket.getPeerCertificate().fingerprint256 ?? '')
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => sockets.delete(socket))
      socket.on('data', () => socket.write('+OK\r\n'))
    },
  )
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return {
    server,
    peers,
    port: address.port,
    drop: () => {
      for (const socket of sockets) socket.destroy()
    },
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('did not happen within 10 s')
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}
