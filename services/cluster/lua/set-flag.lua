-- Sets or clears a node's flag.
-- KEYS  1 hash of the flag, 2 meta; 3 channel of hints
-- ARGV  1 node id, 2 '1' set, '0' clear, 3 value, 4 most nodes that may have it,
--       5 field of meta that counts which nodes get and lose it (empty: none does)
-- Result  1, or 0 where so many others have it already
local changed
if ARGV[2] == '0' then
  changed = redis.call('HDEL', KEYS[1], ARGV[1])
else
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    return 0
  end
  changed = redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
if changed == 1 and ARGV[5] ~= '' then
  redis.call('HINCRBY', KEYS[2], ARGV[5], 1)
end
redis.call('PUBLISH', KEYS[3], '')
return 1
