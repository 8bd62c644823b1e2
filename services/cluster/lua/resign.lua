-- Ends the caller's leadership; the token stays, so that the next one is greater.
-- KEYS  1 lead; 2 channel of hints
-- ARGV  1 id, 2 incarnation
-- Result  1, or 0 where somebody else leads
local lead = redis.call('HMGET', KEYS[1], 'id', 'incarnation')
if lead[1] ~= ARGV[1] or lead[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'until', '0')
redis.call('PUBLISH', KEYS[2], '')
return 1
