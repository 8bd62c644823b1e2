import { createMemoryStore } from '../../services/cluster/memory-store.ts'
import { storeContract } from './contract.ts'

storeContract('memory', async () => {
  let nowMs = 1000
  return {
    open: async () => createMemoryStore({ nowMs: () => nowMs }),
    pass: async (ms) => {
      nowMs += ms
    },
    close: async () => {},
  }
})
