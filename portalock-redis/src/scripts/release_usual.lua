-- The usual cases of a release, before anything else is even defined: there are no waiters, or the lock goes to the
-- first waiter, which wants all of it. All other cases continue in `release.lua`, which handles these cases too.

local owner = ARGV[2]
local freed = call('HDEL', state, owner)
local line = call('ZRANGE', queue, '0', '1')
local first, second = line[1], line[2]
if freed == 1 and not first then
  call(PUBLISH, state, '-' .. owner)
  return '1'
end

local fields = freed == 1 and call('HGETALL', state)
if fields and #fields == 2 and fields[1] == 'token' then
  local texts = call('HMGET', waiters, first, second or first)
  local session, weight, capacity, own, who =
    string.match(texts[1] or '', '^(%x+)|(%d+)|(%d+)|(%d*)|%d+|(.*)$')
  -- The second waiter may get a token with this grant.
  local goes_on = session and second and string.find(texts[2] or '', '^' .. session .. '|%d+|%d+||')
  if session and weight == capacity and not goes_on and lives(session) then
    call('HDEL', waiters, first)
    call('ZREM', queue, first)
    local head = session .. '|' .. weight .. '|' .. capacity
    local _, token = write_grant(number_of(fields[2]), first, head, who, nil, own)
    if first ~= ARGV[3] then call(PUBLISH, sessions .. session, 'grant|' .. first .. '|' .. token) end
    return '1'
  end
end
