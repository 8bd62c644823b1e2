import type { OptionsOf } from './options.ts'

/**
 * A process of the cluster as its command sees it. It listens as soon as it is started, and can serve once `ready`
 * settles (a coordinator: every expert has a live copy; an expert: it is registered and its shards are loaded).
 */
export type RunningProcess = {
  id: string
  role: 'coordinator' | 'expert'
  /** HOST:PORT where it listens, with the port that was taken. */
  grpc: string
  /** Rejects where it never can; settles or not when it is drained before. */
  ready: Promise<void>
  /** What it tells Prometheus. */
  metrics: MetricsText
  /** Whether it can serve now: what health answers. */
  isServing(): boolean
  /** Never settles while all is well; then with what makes going on senseless. */
  failed: Promise<Error>
  /**
   * Hands over what it has and ends: running requests finish or resume elsewhere, experts move to other nodes. When
   * `deadline` aborts it ends with what could not be handed over. All that it opened is closed afterwards.
   */
  drain(deadline: AbortSignal): Promise<void>
}

export type MetricsText = { readonly contentType: string; text(): Promise<string> }

/** What the command keeps to itself: where the model comes from, how the process ends, what is logged. */
type OfTheCommand =
  | 'model'
  | 'format'
  | 'cache'
  | 'health'
  | 'metricsListen'
  | 'readyFile'
  | 'drainTimeout'
  | 'logLevel'
  | 'logFormat'
type Settings<C extends 'serve' | 'coordinator' | 'expert'> = Omit<OptionsOf<C>, OfTheCommand> & {
  /** Directory for what is kept between starts; it may not exist yet. */
  cache: string
}

/** `serve(settings, log)`; `pack` is the directory of a finished pack. */
export type ServeSettings = Settings<'serve'> & { pack: string }
/** `startCoordinator(settings, log)`. */
export type CoordinatorSettings = Settings<'coordinator'> & { pack: string }
/** `startExpertNode(settings, log)`; `pack` null: shards come from coordinators. */
export type ExpertSettings = Settings<'expert'> & { pack: string | null }
