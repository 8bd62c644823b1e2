-- Takes the leadership if it is free, renews it if it is the caller's. Tokens grow with each change of leader; they start
-- from the time, so that a server which came back empty does not give an old one again.
-- KEYS  1 lead; 2 channel of hints
-- ARGV  1 id, 2 incarnation, 3 lease in ms
-- Result  {leader id, incarnation, token, lease left in ms}
local now = nowMs()
local lead = redis.call('HMGET', KEYS[1], 'id', 'incarnation', 'token', 'until')
local leaseEnd = tonumber(lead[4] or '0')
local isOwn = lead[1] == ARGV[1] and lead[2] == ARGV[2]
if leaseEnd > now and not isOwn then
  return { lead[1], lead[2], lead[3], digits(leaseEnd - now) }
end
local token = lead[3]
-- A leader whose lease ended may have been passed over and not know it: it too begins anew.
if not isOwn or leaseEnd <= now then
  token = digits(math.max(now, tonumber(token or '0') + 1))
  redis.call('PUBLISH', KEYS[2], '')
end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'incarnation', ARGV[2], 'token', token, 'until', digits(now + tonumber(ARGV[3])))
return { ARGV[1], ARGV[2], token, ARGV[3] }
