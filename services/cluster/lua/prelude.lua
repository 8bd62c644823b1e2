-- Stands before every script. Times are the server's, in ms. Numbers above 2^31 are written with `digits`, because
-- Lua's own conversion rounds them to 14 figures.

local function digits(number)
  return string.format('%.0f', number)
end

local function nowMs()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Whether `token` is that of a leader whose lease runs.
local function leads(leadKey, token, now)
  local lead = redis.call('HMGET', leadKey, 'token', 'until')
  return lead[1] == token and tonumber(lead[2] or '0') > now
end

-- A store that nobody reached for most of a lease was itself away, and a new one has not met anybody: for one lease from
-- then on nobody expires. (0.6: beats come every third of a lease, and who beat last just before an outage is due after
-- two thirds of it.)
local function enter(metaKey, leaseMs, now)
  local meta = redis.call('HMGET', metaKey, 'generation', 'touched', 'grace')
  local grace = tonumber(meta[3] or '0')
  if not meta[1] then
    grace = now + leaseMs
    redis.call('HSET', metaKey, 'generation', digits(now), 'version', digits(now * 1000), 'floor', '0')
  elseif now - tonumber(meta[2]) > 0.6 * leaseMs then
    grace = now + leaseMs
  end
  redis.call('HSET', metaKey, 'touched', digits(now), 'grace', digits(grace))
  return grace
end

-- Marks a node as changed since every version before.
local function bump(metaKey, changesKey, id)
  redis.call('ZADD', changesKey, digits(redis.call('HINCRBY', metaKey, 'version', 1)), id)
end

-- Forgets a node; that it is gone is remembered ('1': by silence), but not for more than 1000 of them.
local function remove(metaKey, nodesKey, statusesKey, incarnationsKey, leasesKey, changesKey, goneKey, gaugesKey, id, expired)
  redis.call('HDEL', nodesKey, id)
  redis.call('HDEL', statusesKey, id)
  redis.call('HDEL', incarnationsKey, id)
  redis.call('HDEL', gaugesKey, id)
  redis.call('ZREM', leasesKey, id)
  if redis.call('HLEN', goneKey) >= 1000 then
    for _, old in ipairs(redis.call('HKEYS', goneKey)) do
      redis.call('ZREM', changesKey, old)
    end
    redis.call('DEL', goneKey)
    redis.call('HSET', metaKey, 'floor', redis.call('HGET', metaKey, 'version'))
  end
  redis.call('HSET', goneKey, id, expired)
  bump(metaKey, changesKey, id)
end
