-- Begins an entry anew: without tokens, never resumed.
-- KEYS  1 entry, 2 tokens of the entry
-- ARGV  1 owner, 2 request, 3 time to keep it in ms
-- Result  1
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'request', ARGV[2], 'owner', ARGV[1], 'resumed', '0')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
