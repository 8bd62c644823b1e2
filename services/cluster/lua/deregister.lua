-- Ends a node's membership at once.
-- KEYS  1 meta, 2 nodes, 3 statuses, 4 incarnations, 5 leases, 6 changes, 7 gone, 8 gauges; 9 channel of hints
-- ARGV  1 id, 2 incarnation
-- Result  1, or 0 where the id belongs to another incarnation or to nobody
if redis.call('HGET', KEYS[4], ARGV[1]) ~= ARGV[2] then
  return 0
end
remove(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], ARGV[1], '0')
redis.call('PUBLISH', KEYS[9], '')
return 1
