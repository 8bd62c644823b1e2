import { localTransport } from '../../services/dispatch/local-transport.ts'
import { weightFormats } from '../../services/model/format.ts'
import { dial, startNode } from './grpc-node.ts'
import { startProxy } from './proxy.ts'
import { transportContract } from './transport-contract.ts'

for (const format of weightFormats) {
  transportContract('local', format, async (host) => {
    const transport = localTransport('node', host)
    return { transport, close: () => transport.close() }
  })

  transportContract('grpc', format, async (host) => {
    const node = await startNode(host, format)
    const transport = dial(node.address, format)
    return {
      transport,
      close: async () => {
        await transport.close()
        node.kill()
      },
    }
  })
}

transportContract('grpc, 5 ms away', 'int8', async (host, format) => {
  const node = await startNode(host, format)
  const proxy = await startProxy(node.address, 5)
  const transport = dial(proxy.address, format)
  return {
    transport,
    close: async () => {
      await transport.close()
      await proxy.close()
      node.kill()
    },
  }
})
