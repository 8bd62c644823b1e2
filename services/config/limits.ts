/**
 * The bounds of what comes from outside and of what waits inside, with the reason for each. What depends on the model
 * or the memory (context, sequences, cache) is not here but computed where it is known.
 */

const KiB = 1024
const MiB = 1024 * KiB

/** A prompt of a million token ids takes 4 MiB as varints; more than this in one request is a mistake or an attack. */
export const requestBytesMax = 16 * MiB

/**
 * Longest text per token of context that is tokenized at all. The longest tokens of known vocabularies (runs of blanks
 * and dashes) have 128 bytes, so a text beyond this is too long for the context, and is refused without the seconds
 * that tokenizing it would hold up everybody else.
 */
export const promptBytesPerToken = 512
/** Text for Tokenize, which has no context to be measured by: about a second of tokenizing. */
export const tokenizeBytesMax = 1 * MiB
export const detokenizeIdsMax = 1_000_000

/** Names that clients choose end up in keys, logs and metrics. */
export const requestIdCharsMax = 128
export const clientCharsMax = 256
export const cacheSaltCharsMax = 256

/** Each stop string is looked for in every piece of text. */
export const stopStringsMax = 64
export const stopStringCharsMax = 1024
export const stopTokenIdsMax = 1024
export const logitBiasMax = 4096
/** Candidates share a prefill, but each holds a sequence of the engine. */
export const candidatesMax = 64
export const chatMessagesMax = 4096
export const toolsMax = 256

/**
 * What a client has not read yet of one stream. Beyond it the request is ended (it can be resumed): a client that
 * stopped reading must not fill the memory of all others. Without log-probabilities this is more than a million tokens.
 */
export const unsentBytesMax = 32 * MiB
/** Deltas that wait are sent as one message up to this size; stock clients accept 4 MiB. */
export const messageBytesTarget = 1 * MiB
/** `prompt_logprobs: -1` is one message by the contract; it is built in memory, in several copies. */
export const promptLogprobBytesMax = 64 * MiB

/** Streams of one client connection; one connection serves a proxy with many users. */
export const streamsPerConnectionMax = 1024
/** Calls that run in this process, of all kinds: each costs some KiB even while it waits in the queue. */
export const requestsInFlightMax = 4096
export const watchersMax = 64
/** Events that wait for a watcher that reads slowly. */
export const watcherEventsMax = 1024
/** Status is put together from all nodes, so watchers get it at most this often. */
export const statusEveryMs = 1000

/** A client whose connection broke comes back within minutes, or not at all. */
export const journalKeepMs = 10 * 60 * 1000
/** In memory; with prompts of a thousand tokens about 64 MiB. */
export const journalRequestsMax = 4096
/** Tokens reach the journal in batches: what is lost with a coordinator is computed again. */
export const journalBatchTokens = 16
export const journalBatchMs = 250

/** What a client is told to wait when the queue is full: the time of some steps, not of a whole request. */
export const retryAfterMs = 1000

/**
 * Half-open connections (a cable pulled, a host gone) are found by these pings; they cost 17 bytes each. Clients of
 * other stacks accept one in ten seconds without complaint.
 */
export const keepaliveTimeMs = 10_000
export const keepaliveTimeoutMs = 5_000

/** How long a process that got SIGTERM lets running requests finish before it hands them to others. */
export const drainMs = 30_000
/** After that: for the last answers to reach their clients. */
export const closeGraceMs = 1000
