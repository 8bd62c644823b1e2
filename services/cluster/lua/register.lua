-- Takes or takes back a node id.
-- KEYS  1 meta, 2 nodes, 3 statuses, 4 incarnations, 5 leases, 6 changes, 7 gone; 8 channel of hints
-- ARGV  1 id, 2 incarnation, 3 lease in ms, 4 record (JSON), 5 status (JSON)
-- Result  1, or 0 while another incarnation of it is alive
local now = nowMs()
local leaseMs = tonumber(ARGV[3])
enter(KEYS[1], leaseMs, now)
local incarnation = redis.call('HGET', KEYS[4], ARGV[1])
local leaseEnd = tonumber(redis.call('ZSCORE', KEYS[5], ARGV[1]) or '0')
if incarnation and incarnation ~= ARGV[2] and leaseEnd > now then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[5])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[5], digits(now + leaseMs), ARGV[1])
redis.call('HDEL', KEYS[7], ARGV[1])
bump(KEYS[1], KEYS[6], ARGV[1])
redis.call('PUBLISH', KEYS[8], '')
return 1
