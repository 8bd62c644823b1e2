-- Adds tokens of one candidate. Writing over what is there puts the same tokens, so a repeated batch is harmless.
-- KEYS  1 entry, 2 tokens of the entry (hash: candidate to tokens, 8 hexadecimal digits each)
-- ARGV  1 candidate, 2 offset in tokens, 3 tokens, 4 time to keep it in ms
-- Result  1, or 0 where there is no entry, or the batch would leave a gap
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local known = redis.call('HGET', KEYS[2], ARGV[1]) or ''
local offset = tonumber(ARGV[2]) * 8
if offset > #known then
  return 0
end
local sum = string.sub(known, 1, offset) .. ARGV[3] .. string.sub(known, offset + #ARGV[3] + 1)
redis.call('HSET', KEYS[2], ARGV[1], sum)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
