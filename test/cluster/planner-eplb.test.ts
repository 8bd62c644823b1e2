import { expect, test } from 'vitest'
import { eplb } from '../../services/cluster/planner/eplb.ts'
import { planPlacement } from '../../services/cluster/planner/plan.ts'
import { hasPublishedFile, inputOf, publishedCases } from './planner-cases.ts'

test.each(publishedCases)('EPLB puts the same expert into every slot: $name', (published) => {
  const { phy2log, log2phy, logcnt } = eplb(published)
  expect(phy2log).toEqual(published.phy2log)
  for (const [layer, slots] of log2phy.entries()) {
    expect(slots.flatMap((own, expert) => own.filter((slot) => phy2log[layer]?.[slot] !== expert))).toEqual([])
    expect(slots.map((own) => own.length)).toEqual(logcnt[layer])
  }
})

// What is not measured counts as evenly loaded for the planner, as not loaded at all for EPLB.
const measured = publishedCases.filter(({ weights }) => weights.every((loads) => loads.some((load) => load > 0)))

test.each(measured)('EPLB can be chosen as the policy, its copies are counted by node: $name', (published) => {
  const input = inputOf(published, 1)
  const plan = planPlacement({ ...input, policy: 'eplb' })
  const { phy2log } = eplb({ ...published, numGroups: 1, numNodes: 1 })
  const perNode = published.numReplicas / published.numGpus
  const distinct = phy2log.map(
    (slots) => new Set(slots.map((expert, slot) => `${expert}@${Math.floor(slot / perNode)}`)),
  )
  expect(plan.copies.length).toBe(distinct.reduce((sum, copies) => sum + copies.size, 0))
  expect(plan.unmet).toEqual([])
})

test.skipIf(hasPublishedFile)(
  'only the built-in cases of EPLB are tested: ../shared/reference/eplb.json is missing',
  () => {
    expect(publishedCases.length).toBe(2)
  },
)
