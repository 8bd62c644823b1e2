import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/k8s/**', 'test/gpu/**'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // A loaded machine may be slow; what never comes is a failure all the same.
    expect: { poll: { timeout: 20_000 } },
  },
})
