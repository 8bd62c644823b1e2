-- Bodies of target and active placement, where they differ from what the caller knows.
-- KEYS  1 target, 2 active
-- ARGV  1 epoch and 2 token of the known target, 3 epoch and 4 token of the known active (0: none)
-- Result  {body or '', body or ''}
local function unlessKnown(key, epoch, token)
  local values = redis.call('HMGET', key, 'epoch', 'token', 'body')
  if not values[1] or (values[1] == epoch and values[2] == token) then
    return ''
  end
  return values[3]
end
return { unlessKnown(KEYS[1], ARGV[1], ARGV[2]), unlessKnown(KEYS[2], ARGV[3], ARGV[4]) }
