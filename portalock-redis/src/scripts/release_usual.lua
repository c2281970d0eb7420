-- The ways that nearly every release goes, before anything else is even defined: nobody waits, or the lock goes to the next
-- in line, who wants all of it. Any other goes on to `release.lua`, which could do these as well.

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
