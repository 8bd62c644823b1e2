-- Renews a lease, lets silent nodes expire, and says what changed since the caller's cursor.
-- KEYS  1 meta, 2 nodes, 3 statuses, 4 incarnations, 5 leases, 6 changes, 7 gone, 8 gauges, 9 drained, 10 suspended,
--       11 lead, 12 target, 13 active; 14 channel of hints
-- ARGV  1 id, 2 incarnation, 3 lease in ms, 4 status (JSON; empty: as before), 5 gauges (JSON),
--       6 generation and 7 version of the cursor (both 0: everything)
-- Result  {known 0/1, full 0/1, generation, version, grace left in ms, {id, record, status, ...}, {gone id, expired 0/1, ...},
--         {drained id, by whom, ...}, {suspended id, reason, ...}, {leader id, incarnation, token, lease left in ms} or {},
--         {target epoch, token} or {}, {active epoch, token} or {}, suspensions}
local id = ARGV[1]
local now = nowMs()
local leaseMs = tonumber(ARGV[3])
local grace = enter(KEYS[1], leaseMs, now)
local hint = false

local known = redis.call('HGET', KEYS[4], id) == ARGV[2]
if known then
  redis.call('ZADD', KEYS[5], digits(now + leaseMs), id)
  redis.call('HSET', KEYS[8], id, ARGV[5])
  if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], id) ~= ARGV[4] then
    redis.call('HSET', KEYS[3], id, ARGV[4])
    bump(KEYS[1], KEYS[6], id)
    hint = true
  end
end

if now >= grace then
  for _, silent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', digits(now), 'LIMIT', 0, 256)) do
    remove(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], silent, '1')
    hint = true
  end
end
if hint then
  redis.call('PUBLISH', KEYS[14], '')
end

local meta = redis.call('HMGET', KEYS[1], 'generation', 'version', 'floor', 'suspensions')
local full = ARGV[6] ~= meta[1] or tonumber(ARGV[7]) < tonumber(meta[3])
local nodes, left = {}, {}
if full then
  local records = redis.call('HGETALL', KEYS[2])
  for i = 1, #records, 2 do
    table.insert(nodes, records[i])
    table.insert(nodes, records[i + 1])
    table.insert(nodes, redis.call('HGET', KEYS[3], records[i]))
  end
else
  for _, changed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '(' .. ARGV[7], '+inf')) do
    local record = redis.call('HGET', KEYS[2], changed)
    if record then
      table.insert(nodes, changed)
      table.insert(nodes, record)
      table.insert(nodes, redis.call('HGET', KEYS[3], changed))
    else
      table.insert(left, changed)
      table.insert(left, redis.call('HGET', KEYS[7], changed) or '0')
    end
  end
end

local leader = {}
local lead = redis.call('HMGET', KEYS[11], 'id', 'incarnation', 'token', 'until')
if lead[1] and tonumber(lead[4]) > now then
  leader = { lead[1], lead[2], lead[3], digits(tonumber(lead[4]) - now) }
end
local function identity(key)
  local values = redis.call('HMGET', key, 'epoch', 'token')
  return values[1] and values or {}
end
return {
  known and 1 or 0, full and 1 or 0, meta[1], meta[2], digits(math.max(0, grace - now)), nodes, left,
  redis.call('HGETALL', KEYS[9]), redis.call('HGETALL', KEYS[10]), leader, identity(KEYS[12]), identity(KEYS[13]),
  meta[4] or '0',
}
