/** People look at the last hour; what is older belongs into logs. */
export const eventsMax = 1000
/** Prefix blocks per coordinator that others know of: with 64 tokens a block, the prefixes of 4 million tokens. */
export const kvBlocksMax = 65_536
/** Nodes with an operator's flag. */
export const flagsMax = 1024
/** Coordinators whose loads are kept, and requests in the journal of an embedded store. */
export const loadsMax = 1024
export const journalMax = 4096
