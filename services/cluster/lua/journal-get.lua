-- KEYS  1 entry, 2 tokens of the entry
-- Result  {request, owner, resumed, {candidate, tokens, ...}}, or {} where there is none
local entry = redis.call('HMGET', KEYS[1], 'request', 'owner', 'resumed')
if not entry[1] then
  return {}
end
return { entry[1], entry[2], entry[3], redis.call('HGETALL', KEYS[2]) }
