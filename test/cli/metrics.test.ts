import { afterAll, expect, test } from 'vitest'
import { documentedMetrics, metricNames, readMetrics } from '../support/metrics.ts'
import { Moesh } from './moesh.ts'

const moesh = new Moesh()
afterAll(() => moesh.close())

test.each([2, 3])(
  'serve with two threads and %s ranks tells on --metrics-listen what it has done, and bench --profile where the time went',
  async (ranks) => {
    const flags = ['--ranks', `${ranks}`, '--threads', '2', '--log-format', 'json', '--metrics-listen', '127.0.0.1:0']
    const server = await moesh.start('serve', ...flags)
    const address = /"metrics":"([^"]+)"/.exec(server.stderr())?.[1] ?? ''
    // Its own sample, which it generates at the start, must not be counted halfway.
    await expect.poll(() => server.stderr(), { timeout: 30_000 }).toContain('Ctrl-C ends it')
    const before = await readMetrics(address)

    const load = ['--concurrency', '2', '--requests', '4', '--prompt-tokens', '24', '--max-tokens', '8']
    const { status, stdout } = await moesh.run('bench', '--server', server.grpc, '--json', '--profile', ...load)
    expect(status).toBe(0)

    const after = await readMetrics(address)
    const grown = (name: string) => (after.get(name) ?? Number.NaN) - (before.get(name) ?? Number.NaN)
    // One request to warm up, and four.
    expect(grown('moesh_requests_finished_total{reason="length"}')).toBe(5)
    expect(grown('moesh_prompt_tokens_total')).toBe(5 * 24)
    expect(grown('moesh_generation_tokens_total')).toBe(5 * 8)
    expect(grown('moesh_time_to_first_token_seconds_count')).toBe(5)
    expect(grown('moesh_inter_token_seconds_count')).toBe(5 * 7)
    expect(grown('moesh_step_rows_total{kind="prefill"}') + grown('moesh_step_rows_total{kind="decode"}')).toBe(
      5 * (24 + 7),
    )
    // Four MoE layers, four experts a row.
    expect(grown('moesh_expert_rows_total')).toBe(5 * (24 + 7) * 4 * 4)
    expect(grown('moesh_expert_runtime_seconds_total')).toBeGreaterThan(0)
    expect(grown('moesh_expert_runtime_seconds_total')).toBeLessThanOrEqual(grown('moesh_expert_compute_seconds_total'))
    expect(after.get('moesh_kv_tokens')).toBe(0)
    expect(after.get('moesh_requests_running')).toBe(0)
    expect(after.get('moesh_expert_shards')).toBe(16 * 4)
    expect(after.get('moesh_expert_ranks')).toBe(ranks)
    for (const kind of ['prefill', 'decode']) {
      const phases = [...after].filter(([name]) => name.startsWith(`moesh_step_phase_seconds_total{kind="${kind}"`))
      const seconds = phases.reduce((sum, [, value]) => sum + value, 0)
      expect(seconds).toBeCloseTo(after.get(`moesh_step_seconds_total{kind="${kind}"}`) ?? Number.NaN, 6)
    }

    // There is no dispatch; a limit and a cache only nodes of a cluster have.
    const expected = [...documentedMetrics()].filter(
      (name) => !/^moesh_(dispatch|audit_[cm]|kv_(fetched|sent)|expert_(memory|cache)_bytes)/.test(name),
    )
    expect(metricNames(after)).toEqual(new Set(expected))

    const [{ profile }] = JSON.parse(stdout).steps
    expect(profile).toMatchObject({
      coordinator: server.id,
      threads: ranks,
      layers: 4,
      moe_layers: 4,
      is_embedded: true,
    })
    const decode = profile.kinds.find(({ kind }: { kind: string }) => kind === 'decode')
    expect(decode.rows_per_step).toBe(decode.sequences_per_step)
    expect(decode.typescript_share).toBeGreaterThan(0)
    expect(decode.typescript_share).toBeLessThan(1)
    expect(decode.handover_share).toBeLessThanOrEqual(decode.typescript_share)
    expect((await server.stop()).status).toBe(0)
  },
)

test('an address that is taken is named with its flag', async () => {
  const server = await moesh.start(
    'serve',
    '--ranks',
    '1',
    '--threads',
    '1',
    '--health',
    '127.0.0.1:0',
    '--log-format',
    'json',
  )
  const taken = /"health":"([^"]+)"/.exec(server.stderr())?.[1] ?? ''
  const refused = await moesh.run('serve', '--grpc', '127.0.0.1:0', '--metrics-listen', taken)
  expect(refused).toMatchObject({
    status: 1,
    stderr: expect.stringContaining(`--metrics-listen: cannot listen on ${taken}`),
  })
  await server.stop()
})
