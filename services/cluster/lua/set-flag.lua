-- Sets or clears a node's flag.
-- KEYS  1 hash of the flag; 2 channel of hints
-- ARGV  1 node id, 2 '1' set, '0' clear, 3 value, 4 most nodes that may have it
-- Result  1, or 0 where so many others have it already
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    return 0
  end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('PUBLISH', KEYS[2], '')
return 1
