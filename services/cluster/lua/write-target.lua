-- Sets the placement that nodes shall load. Writing the same again changes nothing.
-- KEYS  1 lead, 2 target; 3 channel of hints
-- ARGV  1 token of the leader and of the placement, 2 epoch, 3 placement (JSON)
-- Result  1, or 0 where the token is not that of the present leader
if not leads(KEYS[1], ARGV[1], nowMs()) then
  return 0
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'token', ARGV[1], 'body', ARGV[3])
redis.call('PUBLISH', KEYS[3], '')
return 1
