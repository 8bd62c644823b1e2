-- Makes the target the active placement.
-- KEYS  1 lead, 2 target, 3 active; 4 channel of hints
-- ARGV  1 token of the leader, 2 epoch and 3 token of the placement that is meant
-- Result  1, or 0 where the caller does not lead, 2 where the target is another one
if not leads(KEYS[1], ARGV[1], nowMs()) then
  return 0
end
local target = redis.call('HMGET', KEYS[2], 'epoch', 'token', 'body')
if target[1] ~= ARGV[2] or target[2] ~= ARGV[3] then
  return 2
end
redis.call('HSET', KEYS[3], 'epoch', target[1], 'token', target[2], 'body', target[3])
redis.call('PUBLISH', KEYS[4], '')
return 1
