-- Replaces a coordinator's load.
-- KEYS  1 load, 2 ends of the loads
-- ARGV  1 coordinator id, 2 load (JSON), 3 time to keep it in ms
-- Result  1
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], digits(nowMs() + tonumber(ARGV[3])), ARGV[1])
return 1
