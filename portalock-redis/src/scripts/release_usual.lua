-- The usual cases of a release, before anything else is even defined: there are no waiters, or the lock goes to the
-- first waiter, which wants all of it. All other cases continue in `release.lua`, which handles these cases too.

local owner = ARGV[2]
local freed = call('HDEL', state, owner)
local first = call('ZRANGE', queue, '0', '0')[1]
if freed == 1 and not first then
  call(PUBLISH, state, '-' .. owner)
  return '1'
end

local fields = freed == 1 and call('HGETALL', state)
if fields and #fields == 2 and fields[1] == 'token' then
  local text = call('HGET', waiters, first)
  local session, weight, capacity, who
  if text then
    session, weight, capacity, who = string.match(text, '^(%x+)|(%d+)|(%d+)|%d*|%d+|(.*)$')
  end
  if session and weight == capacity and lives(session) then
    call('HDEL', waiters, first)
    call('ZREM', queue, first)
    local _, token = write_grant(number_of(fields[2]), first, session .. '|' .. weight .. '|' .. capacity, who)
    call(PUBLISH, sessions .. session, 'grant|' .. first .. '|' .. token)
    return '1'
  end
end
