-- Another coordinator takes the request up.
-- KEYS  1 entry, 2 tokens of the entry
-- ARGV  1 new owner, 2 time to keep it in ms
-- Result  1, or 0 where there is no entry
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'resumed', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
