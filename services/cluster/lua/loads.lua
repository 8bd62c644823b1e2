-- Loads of all coordinators that published lately; older ones are forgotten.
-- KEYS  1 load, 2 ends of the loads
-- Result  {coordinator id, load, ...}
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', digits(nowMs()), 'LIMIT', 0, 1024)) do
  redis.call('HDEL', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
return redis.call('HGETALL', KEYS[1])
