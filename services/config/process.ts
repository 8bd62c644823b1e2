/**
 * A process of the cluster as its command sees it. It listens as soon as it is started, and can serve once `ready`
 * settles (a coordinator: every expert has a live copy; an expert: its shards are loaded).
 */
export type RunningProcess = {
  id: string
  role: 'coordinator' | 'expert'
  /** HOST:PORT where it listens, with the port that was taken. */
  grpc: string
  ready: Promise<void>
  /** Never settles while all is well; then with what makes going on senseless. */
  failed: Promise<Error>
  /**
   * Hands over what it has and ends: running requests finish or resume elsewhere, experts move to other nodes. When
   * `deadline` aborts it ends with what could not be handed over.
   */
  drain(deadline: AbortSignal): Promise<void>
}
