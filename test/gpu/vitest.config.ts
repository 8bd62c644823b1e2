import { defineConfig } from 'vitest/config'

/** `npm run test:gpu`: what needs a device, real or in software; kept out of `npm test`, which must not depend on one. */
export default defineConfig({
  test: { include: ['test/gpu/*.test.ts'], pool: 'forks', maxWorkers: 1, testTimeout: 300_000, hookTimeout: 300_000 },
})
