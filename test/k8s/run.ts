// `npm run test:k8s [-- WORD ...]`: moesh on a real Kubernetes, from `helm install` to `helm uninstall`. Skipped with a
// notice where no cluster can start. With words, only the steps whose names hold one of them, on what is installed; the
// word "--keep-image" leaves out the build.

import { type Context, embeddedTokens } from './context.ts'
import { buildImage, CannotRunHere, startCluster } from './kit.ts'
import { Kube } from './kube.ts'
import { aStrangersPodReachesNoPort, wrongCertificatesGetInNowhere } from './steps/closed.ts'
import {
  allTokensEqualTheEmbeddedOnes,
  aStockClientGenerates,
  helm4InstallsToo,
  helmTestPasses,
  installServesTokens,
  uninstallLeavesOnlyWhatIsKept,
  wrongValuesAreRefused,
} from './steps/install.ts'
import { oneGpuPodTooManyIsExplained, podsSpreadOverZonesAndKnowThem } from './steps/nodes.ts'
import {
  anExpertDiesByForce,
  anHpaScalesExperts,
  anUpgradeChangesAnExpertResource,
  coordinatorsRestartOneByOne,
  expertsScaleByHand,
  theLeaderScalesExperts,
} from './steps/under-load.ts'

const namespace = 'moesh-test'

/** In this order, each from the state that the one before it leaves: three experts, one coordinator. */
const steps: readonly ((context: Context) => Promise<void>)[] = [
  wrongValuesAreRefused,
  installServesTokens,
  allTokensEqualTheEmbeddedOnes,
  aStockClientGenerates,
  helmTestPasses,
  expertsScaleByHand,
  anExpertDiesByForce,
  anUpgradeChangesAnExpertResource,
  coordinatorsRestartOneByOne,
  theLeaderScalesExperts,
  anHpaScalesExperts,
  oneGpuPodTooManyIsExplained,
  podsSpreadOverZonesAndKnowThem,
  wrongCertificatesGetInNowhere,
  aStrangersPodReachesNoPort,
  uninstallLeavesOnlyWhatIsKept,
  helm4InstallsToo,
]

async function main(words: readonly string[]): Promise<number> {
  let env: NodeJS.ProcessEnv
  try {
    env = await startCluster()
  } catch (thrown) {
    if (!(thrown instanceof CannotRunHere)) throw thrown
    console.error(`SKIPPED: the Kubernetes tests need a cluster, and none can start here: ${thrown.message}`)
    return 0
  }
  const kube = new Kube(env, namespace)
  const isWhole = words.length === 0
  const measured = (what: string, value: number | string) => console.log(`      ${what}: ${value}`)
  if (isWhole) await kube.attempt('delete', 'namespace', namespace, '--ignore-not-found', '--timeout=60s')
  await kube.attempt('create', 'namespace', namespace)
  if (!words.includes('--keep-image')) {
    const { megabytes } = await buildImage(env, 'moesh:dev')
    measured('image, MB', Math.round(megabytes))
    if (megabytes > 350) throw new Error('the image is larger than 350 MB')
  }
  const context: Context = { env, kube, reference: await embeddedTokens(), measured }

  const chosen = isWhole
    ? steps
    : steps.filter(({ name }) => words.some((word) => name.toLowerCase().includes(word.toLowerCase())))
  for (const step of chosen) {
    const from = performance.now()
    try {
      await step(context)
    } catch (thrown) {
      console.error(`FAIL  ${step.name}\n${thrown instanceof Error ? thrown.stack : String(thrown)}`)
      console.error((await kube.attempt('get', 'pods,events', '--sort-by=.metadata.creationTimestamp')).stdout)
      return 1
    }
    console.log(`ok    ${step.name} (${((performance.now() - from) / 1000).toFixed(1)} s)`)
  }
  if (isWhole) await kube.attempt('delete', 'namespace', namespace, '--wait=false')
  return 0
}

process.exitCode = await main(process.argv.slice(2))
