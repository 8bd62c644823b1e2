-- Adds prefix blocks that a coordinator caches; those that end first make room.
-- KEYS  1 blocks of the coordinator (sorted by their end)
-- ARGV  1 time to keep them in ms, 2 most blocks, 3... blocks
-- Result  number of blocks kept
local now = nowMs()
local blocksEnd = digits(now + tonumber(ARGV[1]))
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[1], blocksEnd, ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[2]) - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('ZCARD', KEYS[1])
