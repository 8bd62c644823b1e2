-- How many of the blocks, from the first on without a gap, each coordinator caches.
-- KEYS  blocks of each coordinator
-- ARGV  blocks
-- Result  {count, ...} in the order of KEYS
local now = nowMs()
local counts = {}
for i, key in ipairs(KEYS) do
  counts[i] = 0
  for j, block in ipairs(ARGV) do
    local blockEnd = redis.call('ZSCORE', key, block)
    if not blockEnd or tonumber(blockEnd) <= now then
      break
    end
    counts[i] = j
  end
end
return counts
